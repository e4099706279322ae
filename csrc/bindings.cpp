// The Python module piip._C: raw addresses in, nothing of torch known. The caller has checked shapes and allocated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#ifdef PIIP_WITH_CUDA
#include "cuda_ops.h"
#endif

namespace py = pybind11;

namespace piip {
namespace {

template <class T>
T* address(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

void check(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

// pointers: value, reference, points, weights, out, and for the backward grad_out, grad_value, grad_points,
// grad_weights, fixed_point_unit. sizes: batch, cells, queries, heads, width, points per level.
DeformAttn deform_attn_problem(const std::vector<uintptr_t>& pointers, const std::vector<int64_t>& sizes,
                               const std::vector<int64_t>& shapes, bool raw, bool reference_per_batch,
                               bool reference_per_level, int value_dtype, int point_dtype) {
  check(pointers.size() == 10, "deform_attn: ten pointers expected");
  check(sizes.size() == 6, "deform_attn: six sizes expected");
  check(!shapes.empty() && shapes.size() % 2 == 0 && shapes.size() <= 2 * kMaxLevels,
        "deform_attn: 1 to 16 levels expected");
  DeformAttn a{};
  a.value = address<const void>(pointers[0]);
  a.reference = address<const void>(pointers[1]);
  a.points = address<const void>(pointers[2]);
  a.weights = address<const void>(pointers[3]);
  a.out = address<void>(pointers[4]);
  a.grad_out = address<const void>(pointers[5]);
  a.grad_value = address<void>(pointers[6]);
  a.grad_points = address<void>(pointers[7]);
  a.grad_weights = address<void>(pointers[8]);
  a.fixed_point_unit = address<const double>(pointers[9]);
  a.batch = sizes[0], a.cells = sizes[1], a.queries = sizes[2];
  a.heads = int(sizes[3]), a.width = int(sizes[4]), a.points_per_level = int(sizes[5]);
  a.levels = int(shapes.size() / 2);
  int64_t start = 0;
  for (int level = 0; level < a.levels; ++level) {
    a.height_of[level] = int(shapes[2 * level]);
    a.width_of[level] = int(shapes[2 * level + 1]);
    a.start_of[level] = start;
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  check(start == a.cells, "deform_attn: the maps do not add up to the cells");
  a.raw = raw, a.reference_per_batch = reference_per_batch, a.reference_per_level = reference_per_level;
  a.value_dtype = Dtype(value_dtype), a.point_dtype = Dtype(point_dtype);
  return a;
}

// sizes: batch, channels, height, width. levels: (pointer, height, width); factors: (y, x) per level, 0 for none.
// mean and scale are empty where nothing is normalised, valid holds (height, width) per image or nothing.
PyramidResize pyramid_problem(uintptr_t images, const std::vector<int64_t>& sizes, bool channels_last, int image_dtype,
                              const std::vector<uintptr_t>& levels, const std::vector<int64_t>& shapes,
                              const std::vector<double>& factors, int level_dtype, int filter, bool antialias,
                              const std::vector<double>& mean, const std::vector<double>& scale,
                              const std::vector<int64_t>& valid) {
  check(sizes.size() == 4, "pyramid_resize: four sizes expected");
  check(levels.size() <= kMaxPyramidLevels, "pyramid_resize: at most 16 levels");
  check(shapes.size() == 2 * levels.size() && factors.size() == 2 * levels.size(),
        "pyramid_resize: two numbers a level");
  check(sizes[1] <= kMaxChannels, "pyramid_resize: at most 16 channels");
  check(mean.size() == scale.size() && (mean.empty() || int64_t(mean.size()) == sizes[1]),
        "pyramid_resize: a mean a channel");
  check(valid.empty() || int64_t(valid.size()) == 2 * sizes[0], "pyramid_resize: a valid size an image");
  PyramidResize a{};
  a.images = address<void>(images);
  a.batch = sizes[0], a.channels = int(sizes[1]), a.height = int(sizes[2]), a.width = int(sizes[3]);
  a.channels_last = channels_last, a.antialias = antialias, a.normalize = !mean.empty(), a.has_valid = !valid.empty();
  a.filter = Filter(filter);
  a.image_dtype = Dtype(image_dtype), a.level_dtype = Dtype(level_dtype);
  a.level_count = int(levels.size());
  for (size_t i = 0; i < levels.size(); ++i)
    a.levels[i] = {address<void>(levels[i]), int(shapes[2 * i]), int(shapes[2 * i + 1]), factors[2 * i],
                   factors[2 * i + 1]};
  for (int c = 0; c < a.channels; ++c) {
    a.mean[c] = mean.empty() ? 0.0 : mean[c];
    a.scale[c] = mean.empty() ? 1.0 : scale[c];
  }
  a.valid = valid.data();
  return a;
}

// Binds an op as name(arguments of the problem..., threads) and name_cuda(arguments..., device, stream).
template <class Problem, class... Args>
void bind_op(py::module_& m, const std::string& name, Problem (*make)(Args...),
             void (*CpuKernels::*cpu)(const Problem&, int),
             std::common_type_t<void (*)(const Problem&, int, uintptr_t)> cuda) {
  m.def(name.c_str(), [make, cpu](Args... args, int threads) {
    const Problem problem = make(args...);
    const auto kernel = cpu_kernels().*cpu;
    py::gil_scoped_release release;
    kernel(problem, threads);
  });
  if (cuda) {
    m.def((name + "_cuda").c_str(), [make, cuda](Args... args, int device, uintptr_t stream) {
      const Problem problem = make(args...);
      py::gil_scoped_release release;
      cuda(problem, device, stream);
    });
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of piip: deformable attention and pyramid resizing";
#ifdef PIIP_WITH_CUDA
  namespace gpu = cuda;
#define PIIP_CUDA_KERNEL(name) gpu::name
#else
#define PIIP_CUDA_KERNEL(name) nullptr
#endif
  bind_op(m, "deform_attn_forward", deform_attn_problem, &CpuKernels::deform_attn_forward,
          PIIP_CUDA_KERNEL(deform_attn_forward));
  bind_op(m, "deform_attn_backward", deform_attn_problem, &CpuKernels::deform_attn_backward,
          PIIP_CUDA_KERNEL(deform_attn_backward));
  bind_op(m, "pyramid_resize_forward", pyramid_problem, &CpuKernels::pyramid_resize_forward,
          PIIP_CUDA_KERNEL(pyramid_resize_forward));
  bind_op(m, "pyramid_resize_backward", pyramid_problem, &CpuKernels::pyramid_resize_backward,
          PIIP_CUDA_KERNEL(pyramid_resize_backward));
#ifdef PIIP_WITH_CUDA
  m.def("cuda_problem", &gpu::problem, py::call_guard<py::gil_scoped_release>());
#endif
  m.attr("max_samples") = kMaxSamples;
  m.def("cpu_instruction_set", [] { return cpu_kernels().name; });
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
#ifdef PIIP_WITH_CUDA
  m.attr("cuda_version") = PIIP_CUDA_VERSION;
  m.attr("cuda_architectures") = PIIP_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_architectures") = "";
#endif
  m.attr("compiler") = __VERSION__;
}

}  // namespace piip
