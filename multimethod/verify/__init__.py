"""The one oracle: what a program computes, held against eager PyTorch."""
