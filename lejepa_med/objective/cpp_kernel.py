"""The same sums and gradient as one C++ function each, built at first use by the machine's own compiler.

The source needs neither PyTorch's headers nor Inductor: it compiles in about a second, once per process and for all
shapes. (`torch.compile` of the same takes 20 s to a minute; on large problems its kernels are as fast, or up to 1.6
times slower: docs/benchmarks.md.)
Threads are started and joined within a call, so nothing is left behind that a forked loader process could inherit.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lejepa_med.compiling import build_library
from lejepa_med.objective.eager_kernel import split_turn

_SOURCE = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

constexpr int W = 16;           // slices side by side: the vector lanes
constexpr int R = 4;            // samples at a time
constexpr int64_t CHUNK = 128;  // samples summed in T before they go to double

struct Problem { int64_t batch, samples, slices, knots; double step, turn, coarse, fine; };

// cos and sin of step * x: the angle is reduced to one turn (see the eager kernel), then Taylor's series at half the
// angle, which lies within pi / 2, and the double-angle formulas.
template <class T> inline void unit_circle(T x, const Problem& p, T& c, T& s) {
  const T whole = std::nearbyint(x);
  T turns = whole * T(p.coarse);
  turns = (turns - std::nearbyint(turns)) + (whole * T(p.fine) + (x - whole) * T(p.turn));
  turns -= std::nearbyint(turns);
  const T a = turns * T(3.14159265358979323846), q = -a * a;
  T sine, cosine;
  if constexpr (sizeof(T) == 8) {
    sine = std::sin(a), cosine = std::cos(a);
  } else {
    sine = a * (1 + q * (1 / 6.f + q * (1 / 120.f + q * (1 / 5040.f + q * (1 / 362880.f
           + q * (1 / 39916800.f + q * (1 / 6227020800.f)))))));
    cosine = 1 + q * (1 / 2.f + q * (1 / 24.f + q * (1 / 720.f + q * (1 / 40320.f
             + q * (1 / 3628800.f + q * (1 / 479001600.f))))));
  }
  c = 1 - 2 * sine * sine;
  s = 2 * sine * cosine;
}

// z of R samples and W slices; beyond the edges x counts as 0.
template <class T> inline void load(const T* x, int64_t rows, int64_t width, const Problem& p, T c[R][W], T s[R][W]) {
  for (int r = 0; r < R; ++r) {
    T line[W] = {};
    if (r < rows) std::copy(x + r * p.slices, x + r * p.slices + width, line);
    for (int j = 0; j < W; ++j) unit_circle(line[j], p, c[r][j], s[r][j]);
  }
}

// Sums of one block of slices, out[part, knot, batch, slice].
template <class T> void block_sums(const T* x, T* out, int64_t width, const Problem& p) {
  std::vector<T> chunk(p.knots * 2 * W);
  std::vector<double> total(p.knots * 2 * W);
  for (int64_t i = 0; i < p.samples; i += R) {
    const int64_t rows = std::min<int64_t>(R, p.samples - i);
    T zc[R][W], zs[R][W], c[R][W], s[R][W];
    load(x + i * p.slices, rows, width, p, zc, zs);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < W; ++j) c[r][j] = r < rows, s[r][j] = 0;
    for (int64_t k = 0; k < p.knots; ++k) {
      T* a = &chunk[k * 2 * W];
      for (int j = 0; j < W; ++j) {
        T real = 0, imaginary = 0;
        for (int r = 0; r < R; ++r) {
          real += c[r][j], imaginary += s[r][j];
          const T next = c[r][j] * zc[r][j] - s[r][j] * zs[r][j];
          s[r][j] = s[r][j] * zc[r][j] + c[r][j] * zs[r][j];
          c[r][j] = next;
        }
        a[j] += real, a[W + j] += imaginary;
      }
    }
    if ((i + R) % CHUNK == 0 || i + R >= p.samples) {
      for (size_t q = 0; q < chunk.size(); ++q) total[q] += chunk[q], chunk[q] = 0;
    }
  }
  for (int64_t k = 0; k < p.knots; ++k)
    for (int part = 0; part < 2; ++part)
      for (int j = 0; j < width; ++j)
        out[(part * p.knots + k) * p.batch * p.slices + j] = T(total[(k * 2 + part) * W + j]);
}

// Gradient of one block of slices by Horner's rule with c_k = t_k (b_k + i a_k); upstream[part, knot, batch, slice].
template <class T> void block_gradient(const T* x, const T* upstream, T* out, int64_t width, const Problem& p) {
  std::vector<T> g(p.knots * 2 * W);
  for (int64_t k = 0; k < p.knots; ++k)
    for (int part = 0; part < 2; ++part)
      for (int j = 0; j < width; ++j)
        g[(k * 2 + 1 - part) * W + j] = T(k * p.step) * upstream[(part * p.knots + k) * p.batch * p.slices + j];
  for (int64_t i = 0; i < p.samples; i += R) {
    const int64_t rows = std::min<int64_t>(R, p.samples - i);
    T zc[R][W], zs[R][W], c[R][W] = {}, s[R][W] = {};
    load(x + i * p.slices, rows, width, p, zc, zs);
    for (int64_t k = p.knots - 1; k > 0; --k) {
      const T* a = &g[k * 2 * W];
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < W; ++j) {
          const T real = c[r][j] + a[j], imaginary = s[r][j] + a[W + j];
          c[r][j] = real * zc[r][j] - imaginary * zs[r][j];
          s[r][j] = real * zs[r][j] + imaginary * zc[r][j];
        }
    }
    for (int r = 0; r < rows; ++r) std::copy(c[r], c[r] + width, out + (i + r) * p.slices);
  }
}

// Calls work(batch, first slice, width) for every block. Blocks are independent: any number of threads, same result.
template <class Work> void over_blocks(const Problem& p, int64_t threads, Work work) {
  const int64_t blocks = (p.slices + W - 1) / W, all = p.batch * blocks;
  const auto share = [&](int64_t t) {
    for (int64_t i = all * t / threads; i < all * (t + 1) / threads; ++i) {
      const int64_t slice = i % blocks * W;
      work(i / blocks, slice, std::min<int64_t>(W, p.slices - slice));
    }
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(share, t);
  share(0);
  for (auto& thread : others) thread.join();
}

template <class T> void sums(const T* x, T* out, const Problem& p, int64_t threads) {
  over_blocks(p, threads, [&](int64_t b, int64_t slice, int64_t width) {
    block_sums(x + b * p.samples * p.slices + slice, out + b * p.slices + slice, width, p);
  });
}

template <class T> void gradient(const T* x, const T* upstream, T* out, const Problem& p, int64_t threads) {
  over_blocks(p, threads, [&](int64_t b, int64_t slice, int64_t width) {
    const int64_t at = b * p.samples * p.slices + slice;
    block_gradient(x + at, upstream + b * p.slices + slice, out + at, width, p);
  });
}

extern "C" {
void sums_float32(const float* x, float* out, const Problem* p, int64_t threads) { sums(x, out, *p, threads); }
void sums_float64(const double* x, double* out, const Problem* p, int64_t threads) { sums(x, out, *p, threads); }
void gradient_float32(const float* x, const float* upstream, float* out, const Problem* p, int64_t threads) {
  gradient(x, upstream, out, *p, threads);
}
void gradient_float64(const double* x, const double* upstream, double* out, const Problem* p, int64_t threads) {
  gradient(x, upstream, out, *p, threads);
}
}
"""

_WORK_PER_THREAD = 2**15
"""Projections that keep a thread busy for some 0.1 ms, several times what starting it costs."""


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "samples", "slices", "knots")),
        *((name, ctypes.c_double) for name in ("step", "turn", "coarse", "fine")),
    )


def sums(x: Tensor, num_knots: int, step: float) -> Tensor:
    """As `eager_kernel.sums`, for contiguous x in float32 or float64 on the CPU."""
    result = x.new_empty(2, num_knots, x.shape[0], x.shape[2])
    function = getattr(library(), f"sums_{str(x.dtype).removeprefix('torch.')}")
    function(_pointer(x), _pointer(result), *_problem(x, num_knots, step))
    return result


def gradient(x: Tensor, upstream: Tensor, step: float) -> Tensor:
    """As `eager_kernel.gradient`, for contiguous x in float32 or float64 on the CPU."""
    result = torch.empty_like(x)
    function = getattr(library(), f"gradient_{str(x.dtype).removeprefix('torch.')}")
    function(_pointer(x), _pointer(upstream), _pointer(result), *_problem(x, upstream.shape[1], step))
    return result


@cache
def library() -> ctypes.CDLL:
    """Compiles and loads the source. Raises OSError, ValueError or SubprocessError where that is impossible."""
    return build_library(_SOURCE, "-pthread")


def _problem(x: Tensor, num_knots: int, step: float) -> tuple[object, ctypes.c_int64]:
    """The shape and the step for C++, and how many threads the work is worth."""
    threads = max(1, min(torch.get_num_threads(), x.numel() // _WORK_PER_THREAD))
    return ctypes.byref(_Problem(*x.shape, num_knots, step, *split_turn(step))), ctypes.c_int64(threads)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())
