"""Code of our own for the processor at hand, where torch's takes too long: written with LLVM's builder, compiled when
it is first needed. Everything has another way to be computed where this can't be had."""
