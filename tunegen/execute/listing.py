"""Reads an amdgcn listing: the text that LLVM writes for one kernel.

Directives: LLVM's "User Guide for AMDGPU Backend", code object and kernel descriptor sections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tunegen.execute.errors import ListingError
from tunegen.execute.operands import Operand, parse_modifiers, parse_operand, split_operands

ARCHITECTURES = ("gfx942", "gfx950")
# A kernel whose arguments are preloaded into SGPRs begins with code that loads them, for firmware that does not; the
# firmware that does skips these bytes ("Preloaded Kernel Arguments" in LLVM's guide).
PRELOAD_PROLOGUE_ALIGNMENT = "8"

# Suffixes of encodings; e32 and e64 have one meaning, the others change operands.
ENCODINGS = ("_e32", "_e64", "_sdwa", "_dpp")

# Descriptor fields whose other values the executor does not model, with those that it does.
MODELLED: dict[str, tuple[int, ...]] = {
    "float_round_mode_32": (0,),
    "float_round_mode_16_64": (0,),
    "float_denorm_mode_32": (3,),
    "float_denorm_mode_16_64": (3,),
    "dx10_clamp": (1,),
    "ieee_mode": (1,),
    "fp16_overflow": (0, 1),
    "tg_split": (0,),
    "user_sgpr_dispatch_ptr": (0,),
    "user_sgpr_queue_ptr": (0,),
    "user_sgpr_dispatch_id": (0,),
    "user_sgpr_private_segment_size": (0,),
    "user_sgpr_kernarg_preload_offset": (0,),
    "uses_dynamic_stack": (0,),
    "system_sgpr_workgroup_info": (0,),
    "system_vgpr_workitem_id": (0,),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction as it stands.

    Attributes:
        line: Line of the listing, from 1.
        text: The instruction without its comment.
        name: Mnemonic without the suffix of its encoding.
        encoding: ``""``, ``"e32"``, ``"e64"``, ``"sdwa"`` or ``"dpp"``.
        operands: In order.
        modifiers: ``offset``, ``op_sel``, ``offen``, ... with what follows the colon, or True.
    """

    line: int
    text: str
    name: str
    encoding: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, str | bool]


@dataclass(frozen=True)
class Argument:
    """A kernel argument in the kernarg segment: offset and size in bytes, and LLVM's value_kind."""

    offset: int
    size: int
    kind: str


@dataclass
class Listing:
    """A kernel.

    Attributes:
        name: Its symbol.
        arch: ``"gfx950"`` or ``"gfx942"``.
        instructions: In order of address.
        labels: Index of the instruction that each label stands before.
        descriptor: The ``.amdhsa_`` fields.
        arguments: From the metadata.
        preloaded_entry: Index of the first instruction behind the prologue that loads arguments, 0 if there is none.
    """

    name: str
    arch: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    descriptor: dict[str, int] = field(default_factory=dict)
    arguments: list[Argument] = field(default_factory=list)
    preloaded_entry: int = 0

    @property
    def kernarg_size(self) -> int:
        """Bytes of the kernarg segment."""
        return self.descriptor["kernarg_size"]


def parse_listing(text: str) -> Listing:
    """Reads a listing of one kernel.

    Raises:
        ListingError: It is of another architecture, has more than one kernel, or uses what the executor lacks.
    """
    target = re.search(r'\.amdgcn_target\s+"amdgcn-amd-amdhsa--(gfx[0-9a-f]+)[^"]*"', text)
    if target is None:
        raise ListingError("The text is no amdgcn listing for amdhsa: it has no .amdgcn_target line.")
    if target[1] not in ARCHITECTURES:
        raise ListingError(f"The executor knows {', '.join(ARCHITECTURES)}; the listing is for {target[1]}.")
    kernels = re.findall(r"^\s*\.amdhsa_kernel\s+(\S+)", text, re.MULTILINE)
    if len(kernels) != 1:
        raise ListingError(f"A listing must have one kernel; this one has {len(kernels)}: {', '.join(kernels)}.")
    listing = Listing(kernels[0], target[1])
    _read_body(text, listing)
    _read_descriptor(text, listing)
    _read_arguments(text, listing)
    return listing


def _read_body(text: str, listing: Listing) -> None:
    inside = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split(";", 1)[0].strip()
        if not inside:
            inside = line == f"{listing.name}:"
            continue
        if not line:
            continue
        if label := re.fullmatch(r"([.\w$]+):", line):
            if label[1].startswith(".Lfunc_end"):
                return
            listing.labels[label[1]] = len(listing.instructions)
        elif line.startswith("."):
            # After the first instruction, code is aligned to 256 bytes only behind the preload prologue.
            if re.fullmatch(rf"\.p2align\s+{PRELOAD_PROLOGUE_ALIGNMENT}\b.*", line) and listing.instructions:
                listing.preloaded_entry = len(listing.instructions)
        else:
            listing.instructions.append(_read_instruction(number, line))
    raise ListingError(f"The kernel {listing.name} has no end: there is no .Lfunc_end label behind it.")


def _read_instruction(number: int, line: str) -> Instruction:
    name, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    encoding = ""
    for suffix in ENCODINGS:
        if name.endswith(suffix):
            name, encoding = name.removesuffix(suffix), suffix[1:]
    text = re.sub(r"\s+", " ", line)
    try:
        operands, modifiers = split_operands(rest)
        return Instruction(
            number, text, name, encoding, tuple(map(parse_operand, operands)), parse_modifiers(modifiers)
        )
    except ValueError as error:
        raise ListingError(f"line {number}: {text}: {error}") from error


def _read_descriptor(text: str, listing: Listing) -> None:
    for name, value in re.findall(r"^\s*\.amdhsa_(\w+)\s+(-?\d+)\s*$", text, re.MULTILINE):
        listing.descriptor[name] = int(value)
    for name, values in MODELLED.items():
        value = listing.descriptor.get(name, values[0])
        if value not in values:
            raise ListingError(
                f"The executor models .amdhsa_{name} {' and '.join(map(str, values))}; {listing.name} has {value}."
            )


def _read_arguments(text: str, listing: Listing) -> None:
    metadata = re.search(r"^\s*\.amdgpu_metadata$(.*)^\s*\.end_amdgpu_metadata$", text, re.MULTILINE | re.DOTALL)
    if metadata is None:
        raise ListingError(f"The listing of {listing.name} has no .amdgpu_metadata, which says what its arguments are.")
    block = re.search(r"^\s+(?:- )?\.args:\s*\n(.*?)(?=^    \.\w)", metadata[1], re.MULTILINE | re.DOTALL)
    for entry in re.split(r"^\s+- ", block[1], flags=re.MULTILINE)[1:] if block else []:
        fields = dict(re.findall(r"\.(\w+):\s+(\S+)", entry))
        listing.arguments.append(Argument(int(fields["offset"]), int(fields["size"]), fields["value_kind"]))
