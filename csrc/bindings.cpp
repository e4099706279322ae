// The Python module piip._C: raw addresses in, nothing of torch known. The caller has checked shapes and allocated.
//
// The struct that describes a call is a class, whose constructor takes the fields by name. An op is a function of such
// an object: name(problem, threads) on the CPU, name_cuda(problem, device, stream) on CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "deform_attn.h"
#include "pyramid_resize.h"
#ifdef PIIP_WITH_CUDA
#include "cuda/ops.h"
#define PIIP_CUDA_KERNEL(name) &cuda::name
#else
#define PIIP_CUDA_KERNEL(name) nullptr
#endif

namespace py = pybind11;
using py::arg;

namespace piip {
namespace {

// The pointer of an address as Python holds it; 0 is null.
template <class T>
T* address(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

void check(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

// What forward and backward of deformable attention have in common: inputs, sizes and dtypes.
DeformAttn attention(uintptr_t value, uintptr_t reference, uintptr_t points, uintptr_t weights, int64_t batch,
                     int64_t cells, int64_t queries, int heads, int width, int points_per_level,
                     const std::vector<int64_t>& shapes, bool raw, bool reference_per_batch, bool reference_per_level,
                     int value_dtype, int point_dtype) {
  check(!shapes.empty() && shapes.size() % 2 == 0 && shapes.size() <= 2 * kMaxLevels,
        "deform_attn: 1 to 16 levels expected");
  DeformAttn a{};
  a.value = address<const void>(value);
  a.reference = address<const void>(reference);
  a.points = address<const void>(points);
  a.weights = address<const void>(weights);
  a.batch = batch, a.cells = cells, a.queries = queries;
  a.heads = heads, a.width = width, a.points_per_level = points_per_level;
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

// A constructor of DeformAttn: the tensors that `set` takes, and what `attention` takes.
template <class... Own, class... Common, class... Names>
void define_attention(py::class_<DeformAttn>& type, void (*set)(DeformAttn&, Own...), DeformAttn (*make)(Common...),
                      const Names&... own) {
  const auto construct = [set, make](Own... tensors, Common... common) {
    DeformAttn a = make(common...);
    set(a, tensors...);
    return a;
  };
  type.def(py::init(construct), py::kw_only(), own..., arg("value"), arg("reference"), arg("points"), arg("weights"),
           arg("batch"), arg("cells"), arg("queries"), arg("heads"), arg("width"), arg("points_per_level"),
           arg("shapes"), arg("raw"), arg("reference_per_batch"), arg("reference_per_level"), arg("value_dtype"),
           arg("point_dtype"));
}

void set_output(DeformAttn& a, uintptr_t out) { a.out = address<void>(out); }

void set_gradients(DeformAttn& a, uintptr_t grad_out, uintptr_t grad_value, uintptr_t grad_points,
                   uintptr_t grad_weights, uintptr_t fixed_point_unit) {
  a.grad_out = address<const void>(grad_out);
  a.grad_value = address<void>(grad_value);
  a.grad_points = address<void>(grad_points);
  a.grad_weights = address<void>(grad_weights);
  a.fixed_point_unit = address<const double>(fixed_point_unit);
}

// With the valid sizes, to which the struct points.
struct OwningPyramidResize : PyramidResize {
  std::vector<int64_t> valid_sizes;
};

// sizes: (height, width) per level; factors: (y, x) per level, 0 for none. mean and scale are empty where nothing is
// normalised; valid_sizes holds (height, width) per image or nothing.
OwningPyramidResize pyramid(uintptr_t images, int64_t batch, int channels, int height, int width, bool channels_last,
                            int image_dtype, const std::vector<uintptr_t>& levels, const std::vector<int64_t>& sizes,
                            const std::vector<double>& factors, int level_dtype, int filter, bool antialias,
                            const std::vector<double>& mean, const std::vector<double>& scale,
                            std::vector<int64_t> valid_sizes) {
  check(levels.size() <= kMaxPyramidLevels, "pyramid_resize: at most 16 levels");
  check(sizes.size() == 2 * levels.size() && factors.size() == 2 * levels.size(),
        "pyramid_resize: two sizes and two factors per level");
  check(channels <= kMaxChannels, "pyramid_resize: at most 16 channels");
  check(mean.size() == scale.size() && (mean.empty() || int(mean.size()) == channels),
        "pyramid_resize: one mean and one scale per channel");
  check(valid_sizes.empty() || int64_t(valid_sizes.size()) == 2 * batch, "pyramid_resize: one valid size per image");
  OwningPyramidResize a{};
  a.images = address<void>(images);
  a.batch = batch, a.channels = channels, a.height = height, a.width = width;
  a.channels_last = channels_last, a.antialias = antialias;
  a.normalize = !mean.empty(), a.has_valid = !valid_sizes.empty();
  a.filter = Filter(filter);
  a.image_dtype = Dtype(image_dtype), a.level_dtype = Dtype(level_dtype);
  a.level_count = int(levels.size());
  for (size_t i = 0; i < levels.size(); ++i)
    a.levels[i] = {address<void>(levels[i]), int(sizes[2 * i]), int(sizes[2 * i + 1]), factors[2 * i],
                   factors[2 * i + 1]};
  for (int c = 0; c < channels; ++c) {
    a.mean[c] = mean.empty() ? 0.0 : mean[c];
    a.scale[c] = mean.empty() ? 1.0 : scale[c];
  }
  a.valid_sizes = std::move(valid_sizes);
  a.valid = a.valid_sizes.data();
  return a;
}

template <class Problem>
void bind_op(py::module_& m, const std::string& name, void (*CpuKernels::*cpu)(const Problem&, int),
             void (*cuda)(const Problem&, int, uintptr_t)) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  const auto run = [cpu](const Problem& problem, int threads) { (cpu_kernels().*cpu)(problem, threads); };
  m.def(name.c_str(), run, arg("problem"), arg("threads"), without_gil);
  if (cuda) m.def((name + "_cuda").c_str(), cuda, arg("problem"), arg("device"), arg("stream"), without_gil);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of piip: deformable attention and pyramid resizing";

  py::class_<DeformAttn> deform_attn(m, "DeformAttn", py::module_local());
  define_attention(deform_attn, set_output, attention, arg("out"));
  define_attention(deform_attn, set_gradients, attention, arg("grad_out"), arg("grad_value"), arg("grad_points"),
                   arg("grad_weights"), arg("fixed_point_unit"));

  py::class_<PyramidResize>(m, "_PyramidResize", py::module_local());
  py::class_<OwningPyramidResize, PyramidResize>(m, "PyramidResize", py::module_local())
      .def(py::init(&pyramid), py::kw_only(), arg("images"), arg("batch"), arg("channels"), arg("height"), arg("width"),
           arg("channels_last"), arg("image_dtype"), arg("levels"), arg("sizes"), arg("factors"), arg("level_dtype"),
           arg("filter"), arg("antialias"), arg("mean"), arg("scale"), arg("valid_sizes"));

#define PIIP_BIND(name, Problem) bind_op<Problem>(m, #name, &CpuKernels::name, PIIP_CUDA_KERNEL(name));
  PIIP_OPS(PIIP_BIND)
#undef PIIP_BIND

  m.attr("max_samples") = kMaxSamples;
  m.def("cpu_instruction_set", [] { return cpu_kernels().instruction_set; });
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
#ifdef PIIP_WITH_CUDA
  m.def("cuda_problem", &cuda::problem, arg("device"), py::call_guard<py::gil_scoped_release>());
  m.attr("cuda_version") = PIIP_CUDA_VERSION;
  m.attr("cuda_architectures") = PIIP_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_architectures") = "";
#endif
  m.attr("compiler") = __VERSION__;
}

}  // namespace piip
