"""The demonstration: a real engine against local servers, with a live display."""
