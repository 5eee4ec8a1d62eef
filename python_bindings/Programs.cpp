#include "Programs.h"
#include "Caches.h"
#include "Modules.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <optional>
#include <utility>

using namespace nb::literals;

Program::Program(const std::string &ptx, const std::string &sidecar) {
  nb::gil_scoped_release release; // the driver compiles
  program.reset(aligned_program_load(ptx.c_str(), sidecar.c_str()));
  if (!program)
    throwLast();
}

namespace {

using Given = nb::ndarray<nb::ro, nb::c_contig>;
using Wanted = nb::ndarray<nb::c_contig>;

/// The number of the current device.
int device() {
  const int number = aligned_cuda_device();
  if (number < 0)
    throwLast();
  return number;
}

/// What to compile for it.
const char *chip() {
  const int capability = aligned_cuda_compute_capability();
  if (capability < 0)
    throwLast();
  return aligned_chip_for(capability);
}

std::unique_ptr<Cache> upload(const Program &program, Cache &host) {
  return locked({&host}, [&] { return Cache::take(aligned_cuda_cache_upload(program.get(), host.get())); });
}

/// Runs the one attention of a program. All arrays are on the host, where what was read is returned, or all on the device, where the call queues its work and returns None.
nb::object decode(const Program &program, Cache &key, Cache &value, const Given &query, float scale, const Wanted &acc, const Wanted &max, const std::optional<Wanted> &sum,
                  const std::optional<Wanted> &certificate, const std::optional<Given> &mask, const std::optional<Given> &logits, bool finished, uintptr_t stream,
                  float softcap, float toleranceFactor, int64_t window, int64_t sinks, int64_t later) {
  const bool isThere = isOnDevice(query.device_type(), query.device_id(), "q");
  auto place = [&](const auto &array) {
    if (isOnDevice(array.device_type(), array.device_id(), "arrays") != isThere)
      throw Error("expected all arrays where the queries are, got some elsewhere");
    return array.data();
  };
  auto orNull = [&](const auto &array) { return array ? place(*array) : decltype(place(*array))(nullptr); };
  aligned_decode_call call = {};
  call.batch = query.shape(0);
  call.query = query.data();
  call.scale = scale;
  call.location = isThere ? ALIGNED_LOCATION_CUDA : ALIGNED_LOCATION_HOST;
  call.finished = finished;
  call.acc = static_cast<float *>(place(acc));
  call.max = static_cast<float *>(place(max));
  call.sum = static_cast<float *>(orNull(sum));
  call.certificate = static_cast<float *>(orNull(certificate));
  call.attn_mask = orNull(mask);
  call.softcap = softcap;
  call.tolerance_factor = toleranceFactor;
  call.window = window;
  call.sinks = sinks;
  call.later = later;
  call.sink_logits = static_cast<const float *>(orNull(logits));
  aligned_tally tally = {};
  locked({&key, &value}, [&] {
    call.key = key.get();
    call.value = value.get();
    const OnStream on(stream);
    if (!isThere)
      aligned_rt_record(&tally, 1);
    const int failed = aligned_program_decode(program.get(), 0, &call);
    aligned_rt_record(nullptr, 0);
    if (failed)
      throwLast();
  });
  return isThere ? nb::none() : nb::object(asDict(tally));
}

/// A copy of an array on the device.
void copyToHost(const Wanted &to, const Given &from, const std::string &what, uintptr_t stream) {
  isOnDevice(from.device_type(), from.device_id(), what);
  nb::gil_scoped_release release;
  const OnStream on(stream);
  if (aligned_cuda_copy_to_host(to.data(), from.data(), int64_t(from.nbytes())))
    throwLast();
}

} // namespace

void bindPrograms(nb::module_ &m) {
  nb::class_<Program>(m, "_Program", "Kernels of one attention, and those that append to its caches, on the current device of CUDA.")
      .def(nb::init<const std::string &, const std::string &>(), "ptx"_a, "launch"_a)
      .def("upload", &upload, "cache"_a)
      .def("decode", &decode, "key"_a, "value"_a, "query"_a.noconvert(), "scale"_a, "acc"_a.noconvert(), "max"_a.noconvert(), "sum"_a.noconvert().none(),
           "certificate"_a.noconvert().none(), "attn_mask"_a.noconvert().none(), "sink_logits"_a.noconvert().none(), "finished"_a, "stream"_a, "softcap"_a = 0, "tolerance_factor"_a = 1,
           "window"_a = 0, "sinks"_a = 0, "later"_a = 0);
  m.def("_device", &device);
  m.def("_chip", &chip);
  m.def("_copy_to_host", &copyToHost, "to"_a.noconvert(), "from_"_a.noconvert(), "name"_a, "stream"_a);
}
