"""ops/cpu"""
