"""What a network costs: multiply-adds, floating-point operations, seconds, bytes and joules."""
