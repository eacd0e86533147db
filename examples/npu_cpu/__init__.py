"""One block of the adder, its projections on an NPU and its attention on the CPU."""
