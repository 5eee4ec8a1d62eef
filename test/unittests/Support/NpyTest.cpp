// NumPy files spelled out byte by byte, and every way in which they can be wrong.

#include "aligned/Support/Npy.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>
#include <zip.h>

using namespace aligned;

namespace {

/// A path of its own for each test; the file is gone afterwards.
class File {
public:
  explicit File(const std::string &bytes = "") : path(testing::TempDir() + "npy-test-" + testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  ~File() { std::remove(path.c_str()); }
  File(const File &) = delete;

  std::string bytes() const {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  const std::string path;
};

std::string npy(const std::string &dict, const std::string &data, int version = 1) {
  std::string bytes = "\x93NUMPY", header = dict + "\n";
  bytes += {char(version), 0};
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i)
    bytes += char(header.size() >> (8 * i) & 255);
  return bytes + header + data;
}
std::string dict(const std::string &descr, const std::string &shape, const std::string &fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
}
/// The bytes 0, 1, 2, ...
std::string counting(int count) {
  std::string bytes(count, 0);
  std::iota(bytes.begin(), bytes.end(), 0);
  return bytes;
}

std::string text(const NpyArray &array) { return {array.bytes.begin(), array.bytes.end()}; }

std::string errorOf(const std::string &bytes) {
  File file(bytes);
  std::string error;
  EXPECT_FALSE(readNpy(file.path, error));
  EXPECT_EQ(error.find(file.path + ": expected "), 0u) << error;
  EXPECT_NE(error.find(", got"), std::string::npos) << error;
  return error.substr(std::min(error.size(), file.path.size() + 2));
}

//===----------------------------------------------------------------------===//
// Arrays
//===----------------------------------------------------------------------===//

TEST(Npy, ReadsEveryVersion) {
  for (int version : {1, 2, 3}) {
    File file(npy(dict("<i2", "(2, 3)"), counting(12), version));
    std::string error;
    std::optional<NpyArray> array = readNpy(file.path, error);
    ASSERT_TRUE(array) << error;
    EXPECT_EQ(array->dtype, DType::I16);
    EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(array->count(), 6);
    EXPECT_EQ(text(*array), counting(12));
    EXPECT_EQ(array->data<int16_t>()[5], 0x0b0a);
  }
}

TEST(Npy, ReadsEveryType) {
  struct {
    const char *descr, *name;
    DType dtype;
    int64_t width;
  } cases[] = {{"<f2", "float16", DType::F16, 2}, {"<f4", "float32", DType::F32, 4}, {"<f8", "float64", DType::F64, 8}, {"|i1", "int8", DType::I8, 1},
               {"<i2", "int16", DType::I16, 2},   {"<i4", "int32", DType::I32, 4},   {"<i8", "int64", DType::I64, 8},   {"|u1", "uint8", DType::U8, 1},
               {"<u2", "uint16", DType::U16, 2},  {"<u4", "uint32", DType::U32, 4},  {"<u8", "uint64", DType::U64, 8},  {"|b1", "bool", DType::Bool, 1}};
  for (const auto &c : cases) {
    File file(npy(dict(c.descr, "(3,)"), counting(3 * c.width)));
    std::string error;
    std::optional<NpyArray> array = readNpy(file.path, error);
    ASSERT_TRUE(array) << error;
    EXPECT_EQ(array->dtype, c.dtype);
    EXPECT_STREQ(name(c.dtype), c.name);
    EXPECT_EQ(byteWidth(c.dtype), c.width);
    EXPECT_EQ(array->bytes.size(), size_t(3 * c.width));
  }
}

TEST(Npy, ReadsScalarsAndEmptyArrays) {
  std::string error;
  for (auto [shape, count] : {std::pair("()", 1), {"(0,)", 0}, {"(3, 0, 999999999999)", 0}}) {
    File file(npy(dict("<f4", shape), counting(4 * count)));
    std::optional<NpyArray> array = readNpy(file.path, error);
    ASSERT_TRUE(array) << error;
    EXPECT_EQ(array->count(), count);
  }
}

/// Key order, quotes and spaces are the writer's business.
TEST(Npy, ReadsOtherSpellings) {
  File file(npy("{ \"shape\":(2 ,2), 'fortran_order' : False,'descr':'<u2'}     ", counting(8)));
  std::string error;
  std::optional<NpyArray> array = readNpy(file.path, error);
  ASSERT_TRUE(array) << error;
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 2}));
}

TEST(Npy, TurnsFortranOrder) {
  // Element (i, j, k) of [2, 3, 2] holds 100 i + 10 j + k; the first index runs fastest.
  std::string columns, rows;
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i)
        columns += {char(100 * i + 10 * j + k), 1};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 2; ++k)
        rows += {char(100 * i + 10 * j + k), 1};
  for (auto [fortran, expected] : {std::pair("True", rows), {"False", columns}}) {
    File file(npy(dict("<i2", "(2, 3, 2)", fortran), columns));
    std::string error;
    std::optional<NpyArray> array = readNpy(file.path, error);
    ASSERT_TRUE(array) << error;
    EXPECT_EQ(text(*array), expected);
  }
}

TEST(Npy, WritesWhatItReads) {
  for (const std::vector<int64_t> &shape : {std::vector<int64_t>{}, {1}, {65}, {3, 0}, {2, 3, 7}})
    for (DType dtype : {DType::F16, DType::I64, DType::Bool}) {
      NpyArray array{dtype, shape, {}};
      array.bytes.resize(array.count() * byteWidth(dtype), 1);
      std::iota(array.bytes.begin(), array.bytes.end(), 0);
      File file;
      std::string error;
      ASSERT_TRUE(writeNpy(file.path, array, error)) << error;
      std::string bytes = file.bytes();
      EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
      EXPECT_EQ((bytes.size() - array.bytes.size()) % 64, 0u); // the data is aligned
      std::optional<NpyArray> again = readNpy(file.path, error);
      ASSERT_TRUE(again) << error;
      EXPECT_EQ(again->dtype, dtype);
      EXPECT_EQ(again->shape, shape);
      EXPECT_EQ(again->bytes, array.bytes);
    }
}

TEST(Npy, RefusesToWrite) {
  std::string error, path = testing::TempDir() + "no-such-folder/x.npy";
  EXPECT_FALSE(writeNpy(path, {DType::U8, {1}, {0}}, error));
  EXPECT_EQ(error.find(path + ": expected a writable file, got "), 0u) << error;
  File file("before");
  EXPECT_FALSE(writeNpy(file.path, {DType::F32, {2, 2}, std::vector<char>(15)}, error));
  EXPECT_EQ(error, file.path + ": expected 16 bytes for float32 [2, 2], got 15");
  EXPECT_EQ(file.bytes(), "before");
}

//===----------------------------------------------------------------------===//
// What is wrong
//===----------------------------------------------------------------------===//

TEST(Npy, RefusesWhatIsNoFile) {
  std::string error;
  for (std::string path : {testing::TempDir() + "no-such-file.npy", testing::TempDir()}) {
    error.clear();
    EXPECT_FALSE(readNpy(path, error));
    EXPECT_EQ(error.find(path + ": expected a readable file, got "), 0u) << error;
  }
}

TEST(Npy, RefusesEveryTruncation) {
  std::string whole = npy(dict("<i2", "(2, 3)"), counting(12));
  for (size_t size = 0; size < whole.size(); ++size)
    errorOf(whole.substr(0, size));
  EXPECT_EQ(errorOf(whole + "x"), "expected 12 bytes for int16 [2, 3], got 13");
}

TEST(Npy, RefusesHeaders) {
  EXPECT_EQ(errorOf("\x93NUMPX\x01\x00\x00\x00"), "expected a .npy file, got no NumPy magic at its start");
  EXPECT_EQ(errorOf(npy(dict("<i2", "(1,)"), "ab", 4)), "expected .npy version 1, 2 or 3, got 4");
  EXPECT_EQ(errorOf(std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{}", 14)), "expected a header of 4294967295 bytes, got 2");
  for (const char *header : {"", "(1, 2)", "{", "{}", "{'descr'", "{'descr': '<i2'}", "{'descr': '<i2', 'shape': (1,)}", "{'descr': '<i2', 'descr': '<i2'}",
                             "{'descr': [('a', '<i2')], 'fortran_order': False, 'shape': (1,)}", "{'descr': '<i2', 'fortran_order': 0, 'shape': (1,)}",
                             "{'descr': '<i2', 'fortran_order': False, 'shape': (1,), 'more': 1}", "{'descr': '<i2', 'fortran_order': False, 'shape': (1,)} x",
                             "{'descr': '<i2, 'fortran_order': False, 'shape': (1,)}", "{'descr': '<i2', 'fortran_order': False, 'shape': 1}"})
    errorOf(npy(header, "ab"));
}

TEST(Npy, RefusesTypes) {
  for (const char *descr : {">i2", ">f8", "<c8", "|O", "|S2", "<U1", "<f16", "<i3", "", "i2", "<M8"})
    EXPECT_EQ(errorOf(npy(dict(descr, "(1,)"), "ab")), std::string("expected little-endian numbers or booleans, got dtype '") + descr + "'");
}

TEST(Npy, RefusesShapes) {
  for (const char *shape : {"(-1,)", "(1.5,)", "(1 2)", "(,)", "(99999999999999999999,)", "(1,", "('a',)"})
    EXPECT_NE(errorOf(npy(dict("<i2", shape), "ab")).find("in the header"), std::string::npos) << shape;
  // Products that overflow, and ones that would ask for more than the file has.
  EXPECT_EQ(errorOf(npy(dict("<f8", "(4294967296, 4294967296)"), "")), "expected a shape that fits the file, got [4294967296, 4294967296]");
  EXPECT_EQ(errorOf(npy(dict("<f8", "(1000000000000,)"), "")), "expected 8000000000000 bytes for float64 [1000000000000], got 0");
  std::string deep = "(";
  for (int dim = 0; dim < 1000; ++dim)
    deep += "1,";
  errorOf(npy(dict("<i2", deep + ")"), "ab"));
}

//===----------------------------------------------------------------------===//
// Archives
//===----------------------------------------------------------------------===//

struct Entry {
  std::string name, content;
};

/// Writes an archive over the file.
void writeZip(const File &file, const std::vector<Entry> &entries, int method) {
  zip_t *archive = zip_open(file.path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  ASSERT_TRUE(archive);
  for (const Entry &entry : entries) {
    zip_source_t *source = zip_source_buffer(archive, entry.content.data(), entry.content.size(), 0);
    zip_int64_t index = zip_file_add(archive, entry.name.c_str(), source, 0);
    ASSERT_GE(index, 0);
    ASSERT_EQ(zip_set_file_compression(archive, index, method, 0), 0);
  }
  ASSERT_EQ(zip_close(archive), 0);
}

TEST(Npz, ReadsStoredAndDeflated) {
  for (int method : {ZIP_CM_STORE, ZIP_CM_DEFLATE}) {
    File file;
    writeZip(file, {{"q.npy", npy(dict("<i2", "(2, 3)"), counting(12))}, {"zeros.npy", npy(dict("<f4", "(100, 1000)"), std::string(400000, 0))}}, method);
    std::string error;
    auto arrays = readNpz(file.path, error);
    ASSERT_TRUE(arrays) << error;
    ASSERT_EQ(arrays->size(), 2u);
    EXPECT_EQ(text(arrays->at("q")), counting(12));
    EXPECT_EQ(arrays->at("zeros").count(), 100000);
  }
}

TEST(Npz, RefusesWhatIsNoArchive) {
  std::string error;
  for (std::string bytes : {std::string("no archive"), npy(dict("<i2", "(1,)"), "ab")}) {
    File file(bytes);
    EXPECT_FALSE(readNpz(file.path, error));
    EXPECT_EQ(error.find(file.path + ": expected an .npz archive, got"), 0u) << error;
  }
  EXPECT_FALSE(readNpz(testing::TempDir() + "no-such-file.npz", error));
  EXPECT_FALSE(readNpz(testing::TempDir(), error));
}

TEST(Npz, NamesTheEntryThatIsWrong) {
  File file;
  writeZip(file, {{"good.npy", npy(dict("<i2", "(1,)"), "ab")}, {"bad.npy", npy(dict("<i2", "(2,)"), "ab")}}, ZIP_CM_DEFLATE);
  std::string error;
  EXPECT_FALSE(readNpz(file.path, error));
  EXPECT_EQ(error, file.path + ": bad.npy: expected 4 bytes for int16 [2], got 2");
}

/// Sizes that the directory claims are not believed: neither more nor fewer bytes than there are, nor absurdly many.
TEST(Npz, RefusesFalseSizes) {
  std::string content = npy(dict("|u1", "(100000,)"), std::string(100000, 0)), error;
  uint32_t truth = uint32_t(content.size());
  for (int method : {ZIP_CM_STORE, ZIP_CM_DEFLATE})
    for (uint32_t lie : {0u, 100u, truth - 1, truth + 1, 0x7fffffffu, 0xfffffffeu, 0xffffffffu}) {
      File file;
      writeZip(file, {{"x.npy", content}}, method);
      std::string bytes = file.bytes();
      std::string from(reinterpret_cast<char *>(&truth), 4), to(reinterpret_cast<char *>(&lie), 4);
      size_t directory = bytes.find("PK\x01\x02");
      ASSERT_NE(directory, std::string::npos);
      ASSERT_EQ(bytes.substr(directory + 24, 4), from);
      bytes.replace(directory + 24, 4, to);
      std::ofstream(file.path, std::ios::binary) << bytes;
      EXPECT_FALSE(readNpz(file.path, error)) << lie;
      EXPECT_EQ(error.find(file.path + ": "), 0u) << error;
    }
}

TEST(Npz, SurvivesDamage) {
  File file;
  writeZip(file, {{"a.npy", npy(dict("<i2", "(2, 3)"), counting(12))}, {"b.npy", npy(dict("<f4", "(64,)"), std::string(256, 7))}}, ZIP_CM_DEFLATE);
  std::string whole = file.bytes(), error;
  for (size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(file.path, std::ios::binary) << whole.substr(0, size);
    EXPECT_FALSE(readNpz(file.path, error)) << size;
  }
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] ^= 1 << at % 8;
    std::ofstream(file.path, std::ios::binary) << damaged;
    if (!readNpz(file.path, error)) { // some bytes, such as times, mean nothing
      EXPECT_EQ(error.find(file.path + ": "), 0u) << error;
    }
  }
}

} // namespace
