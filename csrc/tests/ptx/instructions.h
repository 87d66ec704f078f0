// Test only: a test of the interpreter itself.
#pragma once

namespace ptx {

/// Executes single instructions, and checks their results.
void test_instructions();

}  // namespace ptx
