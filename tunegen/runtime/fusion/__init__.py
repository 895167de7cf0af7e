"""Rewriting a model's graph to the pack's ops; imported only where a pass is made.

Patterns are not traced graphs: what a norm looks like after Inductor's earlier passes depends on the torch version, on
the order of factors and on where casts are. A match is found by walking back from the node that quantises (or that
writes the cache), which gives the roundings of that very graph and, where there is no match, the reason.
"""
