// The text of a PTX module, statement by statement.
#include <cxxabi.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "program.h"

namespace ptx {
namespace {

struct Token {
  std::string text;
  uint32_t line;
};

bool in_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

/// Words, strings and single characters, without comments.
std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  uint32_t line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    size_t end = i + 1;
    if (c == '\n') ++line;
    if (text.compare(i, 2, "//") == 0) {
      end = text.find('\n', i);
    } else if (c == '"') {
      end = text.find('"', i + 1) + 1;
    } else if (in_word(c) || (c == '-' && std::isdigit(static_cast<unsigned char>(text[i + 1])))) {
      while (in_word(text[end]) || (text.compare(end, 2, "::") == 0 && ++end)) ++end;
    }
    if (!std::isspace(static_cast<unsigned char>(c)) && text.compare(i, 2, "//") != 0) tokens.push_back({text.substr(i, end - i), line});
    i = end;
  }
  return tokens;
}

std::string demangled(const std::string& name) {
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr);
  const std::string result = text ? text : name;
  std::free(text);
  return result;
}

size_t bytes_of_type(const std::string& type) {
  if (type == ".pred") return 1;
  return type.size() > 2 ? std::strtoul(type.c_str() + 2, nullptr, 10) / 8 : 0;
}

struct Symbol {
  enum Kind { kRegister, kEntryParam, kLocal, kShared } kind;
  uint64_t at;  ///< its slot, or its address
  size_t bytes;
};

struct Function {
  uint32_t begin = 0;
  Slot return_to = kNoSlot;
  std::vector<Symbol> params, results;
};

class Parser {
 public:
  Parser(const std::string& name, const std::string& text) : tokens_(tokens_of(text)) {
    program_.name = name;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) program_.lines.push_back(line);
  }

  Program run() {
    scopes_.emplace_back();
    // Functions first: lanes at the lowest address run first (warp.h), so that those in a function come back to the others.
    for (const bool entries : {false, true}) {
      at_ = 0;
      while (at_ < tokens_.size()) module_statement(entries);
    }
    for (const auto& [place, name] : calls_) program_.code[place].target = function(name).begin;
    program_.local_bytes = (program_.local_bytes + 15) / 16 * 16;  // every lane's is aligned
    return std::move(program_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const uint32_t line = tokens_[at_ < tokens_.size() ? at_ : tokens_.size() - 1].line;
    throw std::runtime_error(program_.name + ":" + std::to_string(line) + ": " + what + ": " + program_.lines[line - 1]);
  }
  const std::string& peek() const {
    static const std::string end;
    return at_ < tokens_.size() ? tokens_[at_].text : end;
  }
  std::string next() {
    if (at_ == tokens_.size()) fail("the text ends");
    return tokens_[at_++].text;
  }
  bool accept(const char* text) { return peek() == text && ++at_; }
  void expect(const char* text) {
    if (!accept(text)) fail(std::string("expected ") + text);
  }
  uint64_t number() { return std::strtoull(next().c_str(), nullptr, 0); }

  // -------------------------------------------------------------------------- declarations

  void module_statement(bool entries) {
    const std::string word = next();
    if (word == ".version" || word == ".target" || word == ".address_size") {
      next();
    } else if (word == ".visible" || word == ".weak" || word == ".extern") {
    } else if (word == ".shared") {
      if (entries) skip_to(";");
      else declare(word);
    } else if (word == ".func" || word == ".entry") {
      function_statement(word == ".entry", entries);
    } else {
      fail("not known at this place");
    }
  }

  void skip_to(const char* text) {
    while (next() != text) {}
  }

  void function_statement(bool entry, bool entries) {
    scopes_.emplace_back();
    Function f;
    if (!entry && accept("(")) f.results = parameters(false);
    const std::string name = next();
    if (accept("(")) f.params = parameters(entry);
    while (peek() != "{" && peek() != ";") next();  // .maxntid and the like
    if (entry != entries) {
      if (next() == "{") skip_body();
    } else {
      const Function known = entry ? f : declared(name, f);
      if (next() == "{") body(name, entry, known);
    }
    scopes_.pop_back();
  }

  /// A function's parameters are where its prototype has put them.
  const Function& declared(const std::string& name, const Function& f) {
    const auto [found, is_new] = functions_.emplace(name, f);
    Function& known = found->second;
    if (is_new) known.return_to = program_.registers++;
    for (auto& [unused, symbol] : scopes_.back()) {
      const auto move = [&s = symbol](const std::vector<Symbol>& from, const std::vector<Symbol>& to) {
        for (size_t i = 0; i < from.size(); ++i)
          if (s.at == from[i].at) return s = to[i], true;
        return false;
      };
      move(f.params, known.params) || move(f.results, known.results);
    }
    return known;
  }

  void skip_body() {
    for (int depth = 1; depth > 0;) {
      const std::string word = next();
      depth += word == "{" ? 1 : word == "}" ? -1 : 0;
    }
  }

  /// Up to the closing parenthesis.
  std::vector<Symbol> parameters(bool entry) {
    std::vector<Symbol> list;
    while (!accept(")")) {
      expect(".param");
      list.push_back(variable(entry ? Symbol::kEntryParam : Symbol::kLocal));
      accept(",");
    }
    return list;
  }

  void body(const std::string& name, bool entry, const Function& f) {
    const auto begin = uint32_t(program_.code.size());
    if (entry) {
      if (f.params.size() != 1) fail("a kernel with one parameter was expected");
      program_.entries[demangled(name)] = {begin, f.params[0].bytes};
    } else {
      functions_[name].begin = begin;
    }
    in_entry_ = entry;
    return_to_ = f.return_to;
    labels_.clear();
    branches_.clear();
    scopes_.emplace_back();
    for (int depth = 1; depth > 0;) depth += statement();
    for (const auto& [place, label] : branches_) {
      if (!labels_.count(label)) fail("no label " + label);
      program_.code[place].target = labels_[label];
    }
  }

  /// [.align N] .type name[bytes]
  Symbol variable(Symbol::Kind kind) {
    size_t align = 1;
    if (accept(".align")) align = number();
    size_t bytes = bytes_of_type(next());
    align = align < bytes ? bytes : align;
    const std::string name = next();
    if (accept("[")) {
      bytes *= number();
      expect("]");
    }
    size_t& used = kind == Symbol::kShared ? program_.shared_bytes : program_.local_bytes;
    Symbol symbol{kind, 0, bytes};
    if (kind != Symbol::kEntryParam) {
      used = (used + align - 1) / align * align;
      symbol.at = used;
      used += bytes;
    }
    scopes_.back()[name] = symbol;
    return symbol;
  }

  void declare(const std::string& space) {
    if (space == ".reg") {
      next();
      do registers(next());
      while (accept(","));
    } else {
      variable(space == ".shared" ? Symbol::kShared : Symbol::kLocal);
    }
    expect(";");
  }

  /// %r<N>, which are %r0 to %rN-1, or one name.
  void registers(const std::string& name) {
    const bool many = accept("<");
    const uint64_t count = many ? number() : 1;
    if (many) expect(">");
    for (uint64_t i = 0; i < count; ++i)
      scopes_.back()[many ? name + std::to_string(i) : name] = {Symbol::kRegister, program_.registers++, 8};
  }

  // -------------------------------------------------------------------------- statements

  /// Returns by how much the depth of braces changes.
  int statement() {
    if (accept("{")) return scopes_.emplace_back(), 1;
    if (accept("}")) return scopes_.pop_back(), -1;
    if (tokens_[at_ + 1].text == ":") {
      labels_[next()] = uint32_t(program_.code.size());
      return expect(":"), 0;
    }
    const std::string& word = peek();
    if (word == ".reg" || word == ".local" || word == ".param" || word == ".shared") declare(next());
    else if (word == ".pragma") skip_to(";");
    else instruction();
    return 0;
  }

  void instruction() {
    Instruction in;
    in.line = tokens_[at_].line;
    if (accept("@")) {
      in.unless = accept("!");
      in.guard = source();
    }
    std::string opcode = next();
    if (opcode.size() > 4 && opcode.compare(opcode.size() - 4, 4, ".uni") == 0) opcode.resize(opcode.size() - 4);
    if (opcode == "bra") {
      in.run = branch;
      branches_.emplace_back(program_.code.size(), next());
    } else if (opcode == "call") {
      call_statement(in);
    } else if (opcode == "ret") {
      in.run = in_entry_ ? stop : leave;
      in.from[0] = return_to_;
    } else if (!with_operands(in, opcode)) {
      fail("unknown instruction " + opcode);
    }
    expect(";");
    if (in.run) program_.code.push_back(in);
  }

  bool with_operands(Instruction& in, const std::string& opcode) {
    if ((in.run = memory_access(opcode, in))) return memory_operands(in, opcode), true;
    for (const auto& found : {lanewise(opcode), address_conversion(opcode, in), collective(opcode)})
      if (!in.run) in.run = found;
    if (!in.run) return false;
    if (in.space == Space::kParam && !in_entry_) in.space = Space::kLocal;
    if (has_result(opcode)) {
      destinations(in);
      expect(",");
    }
    while (peek() != ";") sources(in), accept(",");
    return true;
  }

  static bool has_result(const std::string& opcode) {
    for (const char* without : {"bar", "membar", "fence", "griddepcontrol", "nanosleep"})
      if (opcode.compare(0, std::strlen(without), without) == 0) return false;
    return true;
  }

  /// r, r|p or {r, r}
  void destinations(Instruction& in) {
    if (accept("{")) {
      do add(in.to, in.to_count, destination());
      while (accept(","));
      return expect("}");
    }
    add(in.to, in.to_count, destination());
    if (accept("|")) add(in.to, in.to_count, destination());
  }
  void sources(Instruction& in) {
    if (!accept("{")) return add(in.from, in.from_count, source());
    do add(in.from, in.from_count, source());
    while (accept(","));
    expect("}");
  }
  template <size_t kMost>
  void add(Slot (&slots)[kMost], uint8_t& count, Slot slot) {
    if (count == kMost) fail("more operands than known");
    slots[count++] = slot;
  }

  void memory_operands(Instruction& in, const std::string& opcode) {
    const bool has_destination = opcode[0] != 's' && opcode[0] != 'r';  // not st and red
    if (has_destination) {
      destinations(in);
      expect(",");
    }
    address(in);
    while (accept(",")) sources(in);
    const size_t values = opcode[0] == 's' ? in.from_count - 1u : opcode[0] == 'l' ? in.to_count : 1u;
    const auto has = [&opcode](const char* part) { return opcode.find(part) != std::string::npos; };
    if (values != (has(".v4.") ? 4u : has(".v2.") ? 2u : 1u)) fail("another number of values");
  }

  /// [register or symbol + offset]
  void address(Instruction& in) {
    expect("[");
    const Symbol* symbol = find(peek());
    if (!symbol) fail("an address of an unknown kind");
    next();
    const bool is_register = symbol->kind == Symbol::kRegister;
    add(in.from, in.from_count, is_register ? Slot(symbol->at) : constant(symbol->at));
    // Parameters of functions are in local memory.
    if (in.space == Space::kParam && (is_register ? !in_entry_ : symbol->kind == Symbol::kLocal)) in.space = Space::kLocal;
    if (accept("+")) in.offset = int64_t(number());
    expect("]");
  }

  /// call (results), function, (arguments): copies of parameters around a jump.
  void call_statement(Instruction in) {
    std::vector<Symbol> results, arguments;
    if (accept("(")) results = names(), expect(",");
    const std::string name = next();
    if (accept(",")) expect("("), arguments = names();
    const Function& f = function(name);
    if (arguments.size() != f.params.size() || results.size() != f.results.size()) fail("not the parameters of " + name);
    for (size_t i = 0; i < arguments.size(); ++i) copy(in, f.params[i], arguments[i]);
    Instruction jump = in;
    jump.run = call;
    jump.to[0] = f.return_to;
    calls_.emplace_back(program_.code.size(), name);
    program_.code.push_back(jump);
    for (size_t i = 0; i < results.size(); ++i) copy(in, results[i], f.results[i]);
  }

  std::vector<Symbol> names() {
    std::vector<Symbol> list;
    while (!accept(")")) {
      const Symbol* symbol = find(next());
      if (!symbol) fail("an unknown parameter");
      list.push_back(*symbol);
      accept(",");
    }
    return list;
  }

  void copy(Instruction in, const Symbol& to, const Symbol& from) {
    if (to.bytes != from.bytes) fail("parameters of other sizes");
    in.run = copy_local;
    in.from[0] = constant(to.at);
    in.from[1] = constant(from.at);
    in.from[2] = constant(to.bytes);
    program_.code.push_back(in);
  }

  const Function& function(const std::string& name) const {
    const auto found = functions_.find(name);
    if (found == functions_.end()) fail("no function " + name);
    return found->second;
  }

  // -------------------------------------------------------------------------- operands

  const Symbol* find(const std::string& name) const {
    for (size_t i = scopes_.size(); i-- > 0;)
      if (const auto found = scopes_[i].find(name); found != scopes_[i].end()) return &found->second;
    return nullptr;
  }

  Slot destination() {
    const std::string name = next();
    if (name == "_") return kSink;
    const Symbol* symbol = find(name);
    if (!symbol || symbol->kind != Symbol::kRegister) fail("not a register");
    return Slot(symbol->at);
  }

  /// A register, a number or the address of a symbol.
  Slot source() {
    static const std::map<std::string, Slot> special = {
        {"%tid.x", kTid}, {"%ntid.x", kNtid}, {"%ctaid.x", kCtaid}, {"%nctaid.x", kNctaid}, {"%laneid", kLaneid}};
    const std::string word = next();
    if (const auto found = special.find(word); found != special.end()) return found->second;
    if (const Symbol* symbol = find(word)) return symbol->kind == Symbol::kRegister ? Slot(symbol->at) : constant(symbol->at);
    if (word.size() > 2 && word[0] == '0' && (word[1] == 'd' || word[1] == 'f'))
      return constant(std::strtoull(word.c_str() + 2, nullptr, 16));
    char* end;
    const uint64_t value = std::strtoull(word.c_str(), &end, 0);
    if (*end == 'U') ++end;  // unsigned
    if (end == word.c_str() || *end) fail("an unknown operand " + word);
    return constant(value);
  }

  Slot constant(uint64_t value) {
    const auto [found, is_new] = constants_.emplace(value, constants_.size());
    if (is_new) program_.constants.insert(program_.constants.end(), kLanes, value);
    return kConstant | Slot(found->second);
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  Program program_;
  std::vector<std::unordered_map<std::string, Symbol>> scopes_;
  std::unordered_map<uint64_t, size_t> constants_;
  std::map<std::string, Function> functions_;
  std::vector<std::pair<size_t, std::string>> calls_, branches_;
  std::unordered_map<std::string, uint32_t> labels_;
  Slot return_to_ = kNoSlot;
  bool in_entry_ = false;
};

}  // namespace

Program parse(const std::string& name, const std::string& text) { return Parser(name, text).run(); }

}  // namespace ptx
