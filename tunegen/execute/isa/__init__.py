"""The instructions of CDNA3 (gfx942) and CDNA4 (gfx950), a module a family, each with its table.

References: "AMD Instinct MI300 Instruction Set Architecture" (CDNA3) and "AMD Instinct CDNA4 Instruction Set
Architecture", chapters as named in each module; syntax by LLVM's AMDGPU back end.
"""
