// Test only: switching between stacks. ucontext makes two system calls a switch, and under
// AddressSanitizer clears a whole stack's shadow; a block switches thousands of times.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

/// Saves what a called function must preserve, and the stack pointer through `save`; goes on where
/// `load` was saved.
extern "C" void cuda_shim_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_shim_switch
.type cuda_shim_switch, @function
cuda_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_shim_switch, .-cuda_shim_switch
)");

namespace cuda_shim {

struct Context {
  void* stack_pointer = nullptr;
};

inline void start_context(Context& c, char* stack, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15);
  auto* slot = reinterpret_cast<uint64_t*>(top);
  *--slot = 0;  // where a caller's address would be; aligns the stack as after a call
  *--slot = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--slot = 0;
  c.stack_pointer = slot;
}

inline void switch_context(Context& from, Context& to) {
  cuda_shim_switch(&from.stack_pointer, to.stack_pointer);
}

}  // namespace cuda_shim

#else
#include <ucontext.h>

namespace cuda_shim {

struct Context {
  ucontext_t context;
};

inline void start_context(Context& c, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&c.context);
  c.context.uc_stack.ss_sp = stack;
  c.context.uc_stack.ss_size = bytes;
  c.context.uc_link = nullptr;
  makecontext(&c.context, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

}  // namespace cuda_shim
#endif
