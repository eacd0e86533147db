"""The native engine: methods run by an extension of ExecuTorch's C++ runtime, which is compiled on
this machine at its first use (`build.py`)."""
