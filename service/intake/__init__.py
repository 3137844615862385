"""Bytes in: untrusted pictures and ready tensors become what a network takes."""
