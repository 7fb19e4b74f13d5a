"""C++ source of the views on a CPU (see `kernel`), kept as text so that an installed package can build it anywhere."""

SOURCE = r"""
// One view at a time, on one thread: separable antialiased resampling with the few weights that are not zero, then,
// for a tilted view, linear interpolation; then all intensity augmentations in one pass. 2D is 3D of one plane.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

struct Geometry {
  int64_t in[3], grid[3], out[3], channels, tilted;
  double start[3], pitch[3], half[3];  // the grid: centres start + (i + 1/2) pitch, triangle filters of that half-width
  double origin[3], matrix[9], edge[3];  // tilted: view voxel i is at origin + matrix (i + 1/2) in source voxels
  double air;
};

struct Look {
  int64_t size[3];
  double low, scale, gamma, contrast, bias[9], noise_std;
};

// As resampling._tilt: what the sides of a triangle are weighed with, so that its centre of gravity is its centre.
inline double balance(double centre, double half) {
  if (half <= 1) return 0;
  const double right = std::ceil(centre) - centre, near[2] = {1 - right, right};
  double first = 0, second = 0;
  for (int side = 0; side < 2; ++side) {
    const double x = near[side], n = std::floor(half - x) + 1;
    const double pairs = n * (n - 1) / 2, squares = pairs * (2 * n - 1) / 3;
    const double sum1 = n * x + pairs, sum2 = n * x * x + 2 * x * pairs + squares;
    const double sum3 = n * x * x * x + 3 * x * x * pairs + 3 * x * squares + pairs * pairs;
    first += (side ? 1 : -1) * (sum1 - sum2 / half);
    second += sum2 - sum3 / half;
  }
  return -first / second;
}

// Weights along one axis, as resampling.axis_weights; weight[t][i] so that outputs lie side by side.
struct Taps {
  int64_t count = 0, low = 0, high = 0;  // source voxels low .. high - 1 are needed
  std::vector<int32_t> first;
  std::vector<float> weight;

  Taps(int64_t in, int64_t out, double start, double pitch, double half) : first(out) {
    std::vector<int64_t> last(out);
    const auto centre = [&](int64_t i) { return std::clamp(start + (i + 0.5) * pitch - 0.5, 0.0, double(in - 1)); };
    low = in, high = 0;
    for (int64_t i = 0; i < out; ++i) {
      first[i] = int32_t(std::max<double>(0, std::ceil(centre(i) - half)));
      last[i] = int64_t(std::min<double>(in - 1, std::floor(centre(i) + half)));
      count = std::max(count, last[i] - first[i] + 1);
      low = std::min<int64_t>(low, first[i]), high = std::max(high, last[i] + 1);
    }
    weight.assign(count * out, 0);
    for (int64_t i = 0; i < out; ++i) {
      const double middle = centre(i), tilt = balance(middle, half);
      double sum = 0;
      const auto at = [&](double d) { return std::max(0.0, 1 - std::abs(d) / half) * (1 + tilt * d); };
      for (int64_t v = first[i]; v <= last[i]; ++v) sum += at(v - middle);
      for (int64_t v = first[i]; v <= last[i]; ++v) weight[(v - first[i]) * out + i] = float(at(v - middle) / sum);
    }
  }
};

// line = sum of rows with weights; rows beyond the last needed one have weight 0 and are not read.
template <class T>
inline void combine(float* __restrict line, const T* rows, int64_t stride, int64_t width, const Taps& taps, int64_t out,
                    int64_t i) {
  std::fill(line, line + width, 0.f);
  for (int64_t t = 0; t < taps.count; ++t) {
    const float w = taps.weight[t * out + i];
    if (w == 0) continue;
    const T* __restrict row = rows + t * stride;
    for (int64_t z = 0; z < width; ++z) line[z] += w * float(row[z]);
  }
}

template <class T> void separable(const T* source, float* result, const Geometry& g) {
  const Taps a(g.in[0], g.grid[0], g.start[0], g.pitch[0], g.half[0]);
  const Taps b(g.in[1], g.grid[1], g.start[1], g.pitch[1], g.half[1]);
  const Taps c(g.in[2], g.grid[2], g.start[2], g.pitch[2], g.half[2]);
  const int64_t height = b.high - b.low, width = c.high - c.low, n = g.grid[2];
  std::vector<float> plane(height * width), line(width + c.count);
  for (int64_t i = 0; i < g.grid[0]; ++i) {
    const T* front = source + (a.first[i] * g.in[1] + b.low) * g.in[2] + c.low;
    for (int64_t y = 0; y < height; ++y)
      combine(&plane[y * width], front + y * g.in[2], g.in[1] * g.in[2], width, a, g.grid[0], i);
    for (int64_t j = 0; j < g.grid[1]; ++j) {
      combine(line.data(), &plane[(b.first[j] - b.low) * width], width, width, b, g.grid[1], j);
      float* __restrict row = result + (i * g.grid[1] + j) * n;
      std::fill(row, row + n, 0.f);
      const int32_t* __restrict first = c.first.data();
      for (int64_t t = 0; t < c.count; ++t) {
        const float* __restrict w = &c.weight[t * n];
        const float* __restrict from = line.data() + t - c.low;
        for (int64_t k = 0; k < n; ++k) row[k] += w[k] * from[first[k]];
      }
    }
  }
}

// Linear interpolation of the grid at the voxels of a tilted view; what lies outside of the source is air.
void tilt(const float* __restrict grid, float* __restrict view, const Geometry& g) {
  const int64_t n = g.out[2];
  const int32_t plane = int32_t(g.grid[1] * g.grid[2]), row = int32_t(g.grid[2]);
  const int32_t next[3] = {g.grid[0] > 1 ? plane : 0, g.grid[1] > 1 ? row : 0, g.grid[2] > 1 ? 1 : 0};
  float last[3], cell[3], slope[3], per_pitch[3], per_edge[3], side[3];
  for (int d = 0; d < 3; ++d) {
    last[d] = float(g.grid[d] - 1), cell[d] = float(std::max<int64_t>(g.grid[d] - 2, 0));
    slope[d] = float(g.matrix[3 * d + 2]), side[d] = float(g.in[d]);
    per_pitch[d] = float(1 / g.pitch[d]), per_edge[d] = float(1 / g.edge[d]);
  }
  const float air = float(g.air);
  for (int64_t i = 0; i < g.out[0]; ++i)
    for (int64_t j = 0; j < g.out[1]; ++j) {
      double begin[3];
      float from[3], shift[3];
      for (int d = 0; d < 3; ++d) {
        const double* m = &g.matrix[3 * d];
        begin[d] = g.origin[d] + m[0] * (i + 0.5) + m[1] * (j + 0.5) + m[2] / 2;
        from[d] = float(begin[d]), shift[d] = float((begin[d] - g.start[d]) / g.pitch[d] - 0.5);
      }
      float* __restrict line = view + (i * g.out[1] + j) * n;
      for (int64_t k = 0; k < n; ++k) {
        float inside = 1, f[3];
        int32_t at[3];
        for (int d = 0; d < 3; ++d) {
          const float x = from[d] + k * slope[d];
          inside *= std::min(std::max(std::min(x, side[d] - x) * per_edge[d] + 0.5f, 0.f), 1.f);
          const float m = std::min(std::max(shift[d] + k * slope[d] * per_pitch[d], 0.f), last[d]);
          const float whole = std::min(std::floor(m), cell[d]);
          f[d] = m - whole, at[d] = int32_t(whole);
        }
        const float* p = grid;
        const int32_t o = at[0] * plane + at[1] * row + at[2];
        const float v00 = p[o] + f[2] * (p[o + next[2]] - p[o]);
        const int32_t o1 = o + next[1], o2 = o + next[0], o3 = o2 + next[1];
        const float v01 = p[o1] + f[2] * (p[o1 + next[2]] - p[o1]);
        const float v10 = p[o2] + f[2] * (p[o2 + next[2]] - p[o2]);
        const float v11 = p[o3] + f[2] * (p[o3 + next[2]] - p[o3]);
        const float v0 = v00 + f[1] * (v01 - v00), v1 = v10 + f[1] * (v11 - v10);
        line[k] = air + inside * (v0 + f[0] * (v1 - v0) - air);
      }
    }
}

template <class T> void resample(const T* source, float* view, float* grid, const Geometry& g) {
  const int64_t voxels = g.in[0] * g.in[1] * g.in[2], size = g.out[0] * g.out[1] * g.out[2];
  for (int64_t channel = 0; channel < g.channels; ++channel) {
    float* to = view + channel * size;
    separable(source + channel * voxels, g.tilted ? grid : to, g);
    if (g.tilted) tilt(grid, to, g);
  }
}

// log2 of x > 0 by the series of atanh, |t| < .172; 2^x by Taylor's series, |f| <= 1/2: both to float rounding.
inline float log2_of(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  float m;
  __builtin_memcpy(&m, &bits, 4);
  const float t = (m - 1) / (m + 1), q = t * t;
  return float(exponent) + 2.88539008f * t * (1 + q * (1 / 3.f + q * (1 / 5.f + q * (1 / 7.f + q / 9))));
}

inline float exp2_of(float x) {
  x = std::min(std::max(x, -126.f), 126.f);
  const float whole = std::nearbyint(x), a = (x - whole) * 0.693147181f;
  const int32_t bits = (int32_t(whole) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return power * (1 + a * (1 + a * (1 / 2.f + a * (1 / 6.f + a * (1 / 24.f + a * (1 / 120.f + a * (1 / 720.f)))))));
}

inline float unit(float x) { return std::min(std::max(x, 0.f), 1.f); }

void look(float* x, const float* noise, const Look& p) {
  const float low = float(p.low), scale = float(p.scale), gamma = float(p.gamma), contrast = float(p.contrast);
  const float std = float(p.noise_std);
  bool biased = false;
  for (double term : p.bias) biased |= term != 0;
  const auto place = [&](int64_t i, int64_t side) { return side > 1 ? -1 + 2.0 * i / (side - 1) : -1.0; };
  const int64_t n = p.size[2];
  for (int64_t i = 0; i < p.size[0]; ++i)
    for (int64_t j = 0; j < p.size[1]; ++j) {
      float* __restrict line = x + (i * p.size[1] + j) * n;
      for (int64_t k = 0; k < n; ++k) line[k] = unit((line[k] - low) * scale);
      if (biased || gamma != 1) {
        const double u = place(i, p.size[0]), v = place(j, p.size[1]), log2e = 1.44269504088896341;
        const double* q = p.bias;  // u, v, w, uu, uv, uw, vv, vw, ww
        const float c0 = float(log2e * (q[0] * u + q[1] * v + q[3] * u * u + q[4] * u * v + q[6] * v * v));
        const float c1 = float(log2e * (q[2] + q[5] * u + q[7] * v)), c2 = float(log2e * q[8]);
        const float step = n > 1 ? float(2.0 / (n - 1)) : 0;
        for (int64_t k = 0; k < n; ++k) {
          const float w = -1 + k * step, from = line[k];
          const float to = exp2_of(gamma * log2_of(std::max(from, 1e-30f)) + c0 + w * (c1 + w * c2));
          line[k] = from > 0 ? to : from;  // 0, or NaN, which must not be lost
        }
      }
      if (noise) {
        const float* __restrict extra = noise + (i * p.size[1] + j) * n;
        for (int64_t k = 0; k < n; ++k) line[k] = unit(line[k] * contrast + std * extra[k]);
      } else if (biased || contrast != 1) {
        for (int64_t k = 0; k < n; ++k) line[k] = unit(line[k] * contrast);
      }
    }
}

extern "C" {
void resample_uint8(const uint8_t* x, float* view, float* grid, const Geometry* g) { resample(x, view, grid, *g); }
void resample_int16(const int16_t* x, float* view, float* grid, const Geometry* g) { resample(x, view, grid, *g); }
void resample_float32(const float* x, float* view, float* grid, const Geometry* g) { resample(x, view, grid, *g); }
void intensity(float* x, const float* noise, const Look* p) { look(x, noise, *p); }
}
"""
