"""The filter's expression language: a loop-free subset of CEL over the fields of Exchange."""
