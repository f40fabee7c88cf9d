"""What the Triton kernels of all ops share: launches, device functions, passes over rows."""
