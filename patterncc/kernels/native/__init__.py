"""Generated C++ kernels for the CPU, compiled with the machine's own compiler."""
