"""AlignedKV inside other projects: one module for each, which needs that project installed. Nothing here is imported by `import alignedkv`."""
