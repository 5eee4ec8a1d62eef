#include "Arrays.h"

#include "aligned/Runtime/Cuda.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <utility>
#include <vector>

void throwLast() { throw Error(aligned_last_error()); }

const Dtype &dtypeOf(aligned_dtype value) {
  using Code = nb::dlpack::dtype_code;
  static const Dtype dtypes[] = {
      {ALIGNED_DTYPE_F16, "float16", Code::Float, 16}, {ALIGNED_DTYPE_BF16, "bfloat16", Code::UInt, 16}, {ALIGNED_DTYPE_F32, "float32", Code::Float, 32},
      {ALIGNED_DTYPE_F64, "float64", Code::Float, 64}, {ALIGNED_DTYPE_I1, "bool", Code::Bool, 8},         {ALIGNED_DTYPE_I8, "int8", Code::Int, 8},
      {ALIGNED_DTYPE_I16, "int16", Code::Int, 16},     {ALIGNED_DTYPE_I32, "int32", Code::Int, 32},       {ALIGNED_DTYPE_I64, "int64", Code::Int, 64}};
  return dtypes[value];
}

namespace {

std::string nameOf(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  auto code = static_cast<Code>(dtype.code);
  const char *kind = code == Code::Float ? "float" : code == Code::Bfloat ? "bfloat" : code == Code::Int ? "int" : code == Code::UInt ? "uint" : code == Code::Complex ? "complex" : nullptr;
  return code == Code::Bool ? "bool" : kind ? kind + std::to_string(dtype.bits) : "a dtype of " + std::to_string(dtype.bits) + " bits";
}

/// Whether an array of dtype `got` holds what a tensor of this type needs. MLIR's integers have no sign; NumPy has no bfloat16, so its
/// bits come as uint16.
bool fits(const Dtype &dtype, nb::dlpack::dtype got) {
  using Code = nb::dlpack::dtype_code;
  if (got.bits != dtype.bits || got.lanes != 1)
    return false;
  auto code = static_cast<Code>(got.code);
  return code == dtype.code || (dtype.value == ALIGNED_DTYPE_BF16 && code == Code::Bfloat) || (dtype.code == Code::Int && code == Code::UInt);
}

} // namespace

std::string shapeText(int32_t rank, const int64_t *shape) {
  std::string text = "[";
  for (int32_t dim = 0; dim < rank; ++dim)
    text += (dim ? ", " : "") + (shape[dim] == ALIGNED_DYNAMIC ? "?" : std::to_string(shape[dim]));
  return text + "]";
}

std::string formatText(const aligned_format &format, int64_t resident) {
  std::string text = format.kind == ALIGNED_FORMAT_FIXED ? "fixed<" : "float<";
  for (int32_t plane = 0; plane < format.planes; ++plane)
    text += (plane ? "," : "") + std::to_string(format.width[plane]);
  text += format.role == ALIGNED_ROLE_KEY ? "> key" : "> value";
  return resident < format.planes ? text + ", resident = " + std::to_string(resident) : text;
}

std::string typeText(const aligned_type &type) {
  std::string text = dtypeOf(type.dtype).name + shapeText(type.rank, type.shape);
  return type.is_cache ? text + " " + formatText(type.format, type.resident) : text;
}

/// Reads what NumPy and most others export, without DLPack and a look at the dtype's name, which take several times as long. False if it doesn't fit.
static bool readBuffer(nb::handle object, const Dtype &dtype, int32_t rank, Input &input) {
  using Code = nb::dlpack::dtype_code;
  Buffer &buffer = input.buffer;
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_RECORDS_RO)) {
    PyErr_Clear();
    return false;
  }
  const char kind = buffer.format && !buffer.format[1] ? buffer.format[0] : 0;
  const Code code = kind == '?' ? Code::Bool : strchr("efd", kind) ? Code::Float : strchr("bhilq", kind) ? Code::Int : Code::UInt;
  if (!kind || !strchr("?efdbhilqBHILQ", kind) || buffer.ndim != rank || !fits(dtype, {uint8_t(code), uint8_t(buffer.itemsize * 8), 1}))
    return false;
  input.array.data = buffer.buf;
  for (int32_t dim = 0; dim < rank; ++dim) {
    if (buffer.strides[dim] % buffer.itemsize)
      return false;
    input.array.shape[dim] = buffer.shape[dim];
    input.array.strides[dim] = buffer.strides[dim] / buffer.itemsize;
  }
  return true;
}

/// DLPack's names of places whose memory the CPU reads, and those whose memory CUDA's kernels read.
constexpr int kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;

static bool isOfCuda(int device) { return device == kCuda || device == kCudaManaged; }

bool isOnDevice(int deviceType, int deviceId, const std::string &what) {
  if (!isOfCuda(deviceType))
    return false;
  const int current = aligned_cuda_device();
  if (current < 0)
    throwLast();
  if (deviceId != current)
    throw Error("expected " + what + " on device " + std::to_string(current) + " of CUDA, the current one, got device " + std::to_string(deviceId));
  return true;
}

/// Says why an object is no array that can be read here.
[[noreturn]] static void refuse(nb::handle object, const std::string &what) {
  const std::string type = nb::type_name(object.type()).c_str();
  nb::object dtype = nb::getattr(object, "dtype", nb::none());
  if (nb::object native = nb::getattr(dtype, "isnative", nb::none()); native.is(nb::handle(Py_False)))
    throw Error("expected " + what + " in the byte order of this machine, got " + nb::str(dtype.attr("str")).c_str() + ": pass .astype(dtype.newbyteorder('='))");
  std::string why;
  if (nb::hasattr(object, "__dlpack_device__") && nb::hasattr(object, "__dlpack__"))
    try {
      if (const int device = nb::cast<int>(object.attr("__dlpack_device__")()[0]); device != kCpu && device != kCudaHost) {
        nb::object place = nb::getattr(object, "device", nb::str("another device"));
        throw Error("expected " + what + " in memory of the CPU, got a " + type + " on " + nb::str(place).c_str() + ": pass a copy on the CPU" +
                    (isOfCuda(device) ? ", or use a KVCache with device='cuda'" : ""));
      }
      object.attr("__dlpack__")();
    } catch (const nb::python_error &error) {
      why = std::string(": ") + nb::str(error.value()).c_str();
    }
  throw Error("expected an array as " + what + ", got " + type + why);
}

/// Any array in memory of the CPU, or `orOnDevice` of CUDA. NumPy exports no dtype that it does not define itself, such as the bfloat16 of ml_dtypes: its bits are taken.
static nb::ndarray<nb::ro> exported(nb::handle object, const std::string &what, bool orOnDevice, bool &isBFloat16) {
  nb::object holder = nb::borrow(object), dtype = nb::getattr(object, "dtype", nb::none());
  nb::object name = nb::getattr(dtype, "name", nb::none()), kind = nb::getattr(dtype, "kind", nb::none());
  isBFloat16 = nb::isinstance<nb::str>(name) && nb::isinstance<nb::str>(kind) && nb::cast<std::string>(name) == "bfloat16";
  nb::ndarray<nb::ro> array;
  if (isBFloat16 && nb::hasattr(object, "view"))
    holder = object.attr("view")("uint16");
  if (!nb::try_cast(holder, array))
    refuse(object, what);
  if (const int device = array.device_type(); device != kCpu && device != kCudaHost && !(orOnDevice && isOfCuda(device)))
    refuse(object, what);
  isBFloat16 |= array.dtype().code == uint8_t(nb::dlpack::dtype_code::Bfloat) && array.dtype().bits == 16;
  return array;
}

Input readArray(nb::handle object, const Dtype &dtype, int32_t rank, const std::string &what, bool orOnDevice) {
  if (Input input; PyObject_CheckBuffer(object.ptr()) && readBuffer(object, dtype, rank, input))
    return input;
  Input input;
  bool isBFloat16;
  input.owner = exported(object, what, orOnDevice, isBFloat16);
  if (!fits(dtype, input.owner.dtype()) || (isBFloat16 && dtype.value != ALIGNED_DTYPE_BF16))
    throw Error("expected " + std::string(dtype.name) + " of " + what + ", got " + (isBFloat16 ? "bfloat16" : nameOf(input.owner.dtype())));
  if (input.owner.ndim() != size_t(rank))
    throw Error("expected rank " + std::to_string(rank) + " of " + what + ", got " + std::to_string(input.owner.ndim()));
  input.isOnDevice = isOnDevice(input.owner.device_type(), input.owner.device_id(), what);
  input.array.data = const_cast<void *>(input.owner.data());
  for (int32_t dim = 0; dim < rank; ++dim) {
    input.array.shape[dim] = input.owner.shape(dim);
    input.array.strides[dim] = input.owner.stride(dim);
  }
  return input;
}

using Numpy = nb::ndarray<nb::numpy>;

nb::object takeArray(const aligned_type &type, const aligned_array &array) {
  nb::capsule owner(array.owner, [](void *memory) noexcept {
    aligned_array freed = {};
    freed.owner = memory;
    aligned_array_free(&freed);
  });
  std::vector<size_t> shape(array.shape, array.shape + type.rank);
  return nb::cast(Numpy(array.data, type.rank, shape.data(), owner, array.strides, dtypeOf(type.dtype).dlpack()), nb::rv_policy::reference);
}

nb::tuple viewAsNumpy(nb::handle object, const std::string &what) {
  bool isBFloat16;
  auto *array = new nb::ndarray<nb::ro>(exported(object, what, /*orOnDevice=*/false, isBFloat16));
  nb::capsule owner(array, [](void *held) noexcept { delete static_cast<nb::ndarray<nb::ro> *>(held); });
  const nb::dlpack::dtype bits{uint8_t(nb::dlpack::dtype_code::UInt), 16, 1};
  std::vector<size_t> shape;
  std::vector<int64_t> strides;
  for (size_t dim = 0; dim < array->ndim(); ++dim) {
    shape.push_back(array->shape(dim));
    strides.push_back(array->stride(dim));
  }
  nb::object view = nb::cast(Numpy(const_cast<void *>(array->data()), shape.size(), shape.data(), owner, strides.data(), isBFloat16 ? bits : array->dtype()), nb::rv_policy::reference);
  return nb::make_tuple(view, isBFloat16 ? std::string("bfloat16") : nameOf(array->dtype()));
}
