"""Generated documents and packets: oracle, trace and kernels agree."""
