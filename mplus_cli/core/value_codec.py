"""Memory values in less space: how a row of d numbers is kept in long-term memory and in a memory file.

    model      as the model computes, byte for byte
    bfloat16   as bfloat16 (of a float32 model: half the bytes)
    float8     e4m3 codes and one scale: 4 significant bits each; small entries survive beside large ones
    int8       whole multiples of one scale, -127 to 127: the error is the same for all entries of a row

Scales are powers of two, one byte per row, behind its codes. So decoding is exact in every floating dtype, and encoding
a decoded row gives the same bytes again. A memory token is rounded once, when it is written; from then on short-term
memory, long-term memory and the file hold the same number, and a memory that was loaded from a file continues exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mplus_cli.errors import MPlusError, UsageError

Values = Literal["model", "bfloat16", "float8", "int8"]
LEAST = -100  # exponent of the least scale: rows below 2 ** -101 or so become zero, all others keep their precision
MOST = 2.0**127  # of an entry: rounding upwards stays within float32 and bfloat16
BIAS = 127  # of the exponent as a byte
INT8_MOST = 127.0
FLOAT8_MOST = 448.0
FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class ValueCodec:
    """Rows as they are computed with.

    Attributes:
        name: as in `Values`.
        dtype: of what is computed with.
        stored: dtype of a stored row's elements.
        extra: elements of a stored row beside its d codes.
    """

    name: str
    dtype: torch.dtype
    stored: torch.dtype
    extra: int = 0

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d + extra] of `stored`.

        Raises:
            MPlusError: a row that is not finite, where codes cannot say so.
        """
        return rows.to(self.stored)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """[..., d + extra] -> [..., d] of `dtype`."""
        return stored.to(self.dtype)

    def round(self, rows: torch.Tensor) -> torch.Tensor:
        """What is left of rows [..., d] once they are stored; rounding again changes nothing."""
        rows = rows.to(self.dtype)
        return rows if self.stored == self.dtype else self.decode(self.encode(rows))


class ScaledCodec(ValueCodec, ABC):
    """Codes of one byte and a power of two per row: the least with which the row's largest entry is in range.

    `fraction` and `shift` say which that is: with absmax = m * 2 ** k, 1/2 <= m < 1, the exponent of the scale is
    k - shift, plus 1 if m > fraction. Rounding leaves the largest entry in a range that gives the same exponent again.
    """

    fraction: float
    shift: int

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """See `ValueCodec.encode`."""
        rows = rows.float()
        most = rows.abs().amax(-1, keepdim=True)
        if not bool((most < MOST).all()):
            raise MPlusError(
                f"A write made memory tokens that are not finite, or beyond 2 ** 127; {self.name} cannot hold them.",
                "Check the model with --ltm-dtype model, or run it in another --dtype.",
            )
        mantissa, exponent = torch.frexp(most)
        exponent = exponent - self.shift + (mantissa > self.fraction)
        exponent = exponent.clamp(min=LEAST).masked_fill(most == 0, LEAST).to(torch.int32)
        return torch.cat([self._codes(rows * _power_of_two(-exponent)), self._scale_byte(exponent)], dim=-1)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """See `ValueCodec.decode`."""
        # float16 has too few exponents for the scale; its largest numbers may also round up to beyond its range.
        work = torch.float32 if self.dtype == torch.float16 else self.dtype
        rows = self._numbers(stored[..., :-1]).to(work) * _power_of_two(self._exponent(stored[..., -1:])).to(work)
        if self.dtype == torch.float16:
            most = torch.finfo(torch.float16).max
            rows = rows.clamp(-most, most)
        return rows.to(self.dtype)

    @abstractmethod
    def _codes(self, scaled: torch.Tensor) -> torch.Tensor:
        """Scaled rows [..., d] as codes of `stored`."""

    @abstractmethod
    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [..., d] stand for, before the scale."""

    @abstractmethod
    def _scale_byte(self, exponent: torch.Tensor) -> torch.Tensor:
        """Exponents [..., 1] as elements of `stored`."""

    @abstractmethod
    def _exponent(self, byte: torch.Tensor) -> torch.Tensor:
        """int32 exponents [..., 1] of such elements."""


class Int8Codec(ScaledCodec):
    """int8 [d + 1]: d codes, then the exponent of their scale."""

    fraction, shift = INT8_MOST / 128, 7

    def _codes(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round().to(torch.int8)

    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    def _scale_byte(self, exponent: torch.Tensor) -> torch.Tensor:
        return exponent.to(torch.int8)

    def _exponent(self, byte: torch.Tensor) -> torch.Tensor:
        return byte.to(torch.int32)


class Float8Codec(ScaledCodec):
    """uint8 [d + 1]: d codes (e4m3fn), then the exponent of their scale plus 127."""

    fraction, shift = 464 / 512, 9  # 464 is where rounding would leave the largest code, 448

    def _codes(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.clamp(-FLOAT8_MOST, FLOAT8_MOST).to(FLOAT8).view(torch.uint8)

    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.contiguous().view(FLOAT8).float()

    def _scale_byte(self, exponent: torch.Tensor) -> torch.Tensor:
        return (exponent + BIAS).to(torch.uint8)

    def _exponent(self, byte: torch.Tensor) -> torch.Tensor:
        return byte.to(torch.int32) - BIAS


def check_name(name: str) -> None:
    """Raise UsageError if there is no codec of that name."""
    if name not in get_args(Values):
        raise UsageError(f"Memory values cannot be kept as {name!r}.", f"Use one of {', '.join(get_args(Values))}.")


def value_codec(name: str, dtype: torch.dtype) -> ValueCodec:
    """The codec of a name for a model that computes in `dtype`.

    Raises:
        UsageError: no such name, or one that would save nothing.
    """
    check_name(name)
    if name == "int8":
        return Int8Codec(name, dtype, torch.int8, 1)
    if name == "float8":
        return Float8Codec(name, dtype, torch.uint8, 1)
    if name == "model" or dtype == torch.bfloat16:
        return ValueCodec("model", dtype, dtype)
    if dtype.itemsize <= 2:
        held = str(dtype).removeprefix("torch.")
        raise UsageError(f"Memory values in bfloat16 save nothing for a model in {held}.", "Use float8 or int8.")
    return ValueCodec(name, dtype, torch.bfloat16)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2 ** exponent in float32, exact (torch.ldexp goes through pow). int32, -126 to 127."""
    return (exponent + BIAS << 23).view(torch.float32)
