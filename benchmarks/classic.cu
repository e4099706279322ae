// The design that Deformable-DETR, mmcv and the official PIIP share, as a rival for the benchmarks: one thread per
// output channel; sampling locations in [0, 1] and softmaxed weights lie in float32 in global memory; the backward gives
// a head of a query one block of as many threads as it has channels, which add the value gradient one float at a time
// and sum the gradients of locations and weights in shared memory, one sample after the other.
//
// Written anew from that description. The callers wait for nothing; the caller's stream is used.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kMaxLevels = 16;

struct Problem {
  const float *value, *locations, *weights, *grad_out;
  float *out, *grad_value, *grad_locations, *grad_weights;
  int batch, cells, queries, heads, width, levels, points;
  int height_of[kMaxLevels], width_of[kMaxLevels], start_of[kMaxLevels];
};

struct Corners {
  bool inside;
  float fx, fy;
  int cell[4];  // of the image, -1 outside
};

__device__ Corners find(const Problem& p, int level, float x, float y) {
  const int h = p.height_of[level], w = p.width_of[level];
  const float px = x * w - 0.5f, py = y * h - 0.5f;
  Corners c;
  c.inside = px > -1 && py > -1 && px < w && py < h;
  const int left = int(floorf(px)), top = int(floorf(py));
  c.fx = px - left, c.fy = py - top;
  for (int k = 0; k < 4; ++k) {
    const int cx = left + (k & 1), cy = top + (k >> 1);
    const bool on = c.inside && cx >= 0 && cy >= 0 && cx < w && cy < h;
    c.cell[k] = on ? p.start_of[level] + cy * w + cx : -1;
  }
  return c;
}

__device__ float share(const Corners& c, int k) { return (k & 1 ? c.fx : 1 - c.fx) * (k & 2 ? c.fy : 1 - c.fy); }

__global__ void forward(const __grid_constant__ Problem p) {
  const int64_t total = int64_t(p.batch) * p.queries * p.heads * p.width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int d = int(i % p.width), m = int(i / p.width % p.heads);
    const int64_t item = i / p.width, b = item / p.heads / p.queries;
    const float* value = p.value + ((b * p.cells) * p.heads + m) * p.width + d;
    const int64_t step = int64_t(p.heads) * p.width;
    float sum = 0;
    int64_t at = item * p.levels * p.points;
    for (int level = 0; level < p.levels; ++level) {
      for (int s = 0; s < p.points; ++s, ++at) {
        const Corners c = find(p, level, p.locations[2 * at], p.locations[2 * at + 1]);
        float sampled = 0;
        for (int k = 0; k < 4; ++k)
          if (c.cell[k] >= 0) sampled += share(c, k) * value[c.cell[k] * step];
        sum += p.weights[at] * sampled;
      }
    }
    p.out[i] = sum;
  }
}

// Sums over the block; the result is valid in thread 0. Narrow blocks are summed by one thread, wide ones as a tree.
__device__ float sum_of_block(float* shared, float x, int threads) {
  const int t = threadIdx.x;
  shared[t] = x;
  __syncthreads();
  float sum = 0;
  if (threads < 64) {
    if (t == 0)
      for (int i = 0; i < threads; ++i) sum += shared[i];
  } else {
    int n = threads;
    while (n > 1) {
      const int half = (n + 1) / 2;
      if (t + half < n) shared[t] += shared[t + half];
      __syncthreads();
      n = half;
    }
    sum = shared[0];
  }
  __syncthreads();
  return sum;
}

__global__ void backward(const __grid_constant__ Problem p) {
  extern __shared__ float shared[];
  const int64_t items = int64_t(p.batch) * p.queries * p.heads;
  const int d = threadIdx.x;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int m = int(item % p.heads);
    const int64_t b = item / p.heads / p.queries, step = int64_t(p.heads) * p.width;
    const int64_t base = (b * p.cells * p.heads + m) * p.width + d;
    const float g = p.grad_out[item * p.width + d];
    int64_t at = item * p.levels * p.points;
    for (int level = 0; level < p.levels; ++level) {
      for (int s = 0; s < p.points; ++s, ++at) {
        const Corners c = find(p, level, p.locations[2 * at], p.locations[2 * at + 1]);
        const float weight = p.weights[at];
        float v[4] = {};
        for (int k = 0; k < 4; ++k) {
          if (c.cell[k] < 0) continue;
          v[k] = p.value[base + c.cell[k] * step];
          atomicAdd(p.grad_value + base + c.cell[k] * step, share(c, k) * weight * g);
        }
        float sampled = 0;
        for (int k = 0; k < 4; ++k) sampled += share(c, k) * v[k];
        const float slope_x = (1 - c.fy) * (v[1] - v[0]) + c.fy * (v[3] - v[2]);
        const float slope_y = (1 - c.fx) * (v[2] - v[0]) + c.fx * (v[3] - v[1]);
        const float x = sum_of_block(shared, g * weight * slope_x, p.width);
        const float y = sum_of_block(shared, g * weight * slope_y, p.width);
        const float w = sum_of_block(shared, g * sampled, p.width);
        if (d == 0) {
          p.grad_locations[2 * at] = x * p.width_of[level];
          p.grad_locations[2 * at + 1] = y * p.height_of[level];
          p.grad_weights[at] = w;
        }
      }
    }
  }
}

}  // namespace

// pointers: value, locations, weights, out, and for the backward grad_out, grad_value (zeros), grad_locations,
// grad_weights. sizes: batch, cells, queries, heads, width, levels, points. shapes: height and width of each level.
extern "C" int classic_run(const uint64_t* pointers, const int* sizes, const int* shapes, int is_backward,
                           uint64_t stream) {
  Problem p{};
  p.value = reinterpret_cast<const float*>(pointers[0]);
  p.locations = reinterpret_cast<const float*>(pointers[1]);
  p.weights = reinterpret_cast<const float*>(pointers[2]);
  p.out = reinterpret_cast<float*>(pointers[3]);
  p.grad_out = reinterpret_cast<const float*>(pointers[4]);
  p.grad_value = reinterpret_cast<float*>(pointers[5]);
  p.grad_locations = reinterpret_cast<float*>(pointers[6]);
  p.grad_weights = reinterpret_cast<float*>(pointers[7]);
  p.batch = sizes[0], p.cells = sizes[1], p.queries = sizes[2], p.heads = sizes[3];
  p.width = sizes[4], p.levels = sizes[5], p.points = sizes[6];
  int start = 0;
  for (int level = 0; level < p.levels; ++level) {
    p.height_of[level] = shapes[2 * level], p.width_of[level] = shapes[2 * level + 1], p.start_of[level] = start;
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  const int64_t items = int64_t(p.batch) * p.queries * p.heads;
  const cudaStream_t where = reinterpret_cast<cudaStream_t>(stream);
  if (is_backward) {
    backward<<<unsigned(items), unsigned(p.width), p.width * sizeof(float), where>>>(p);
  } else {
    forward<<<unsigned((items * p.width + 1023) / 1024), 1024, 0, where>>>(p);
  }
  return int(cudaGetLastError());
}
