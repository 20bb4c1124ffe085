"""The policy and its reference: loading, adapters, the forward over prompt trees."""
