// Files that appear complete or not at all.
#include "OutputFile.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"

#include "gtest/gtest.h"

using namespace aligned;
namespace fs = llvm::sys::fs;

namespace {

/// A folder whose name holds what templates of file names mean something by.
std::string folder() {
  std::string path = testing::TempDir() + "aligned-%%-output";
  fs::remove_directories(path);
  fs::create_directory(path);
  return path;
}

int64_t entries(const std::string &path) {
  std::error_code error;
  int64_t count = 0;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    ++count;
  return count;
}

void print(llvm::raw_ostream &os) { os << "all of it"; }

TEST(OutputFile, AppearsCompleteOrNotAtAll) {
  std::string in = folder(), path = in + "/file";
  {
    auto file = OutputFile::create(path, "-o");
    ASSERT_TRUE(file);
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_EQ(entries(in), 0);
  for (int again = 0; again < 2; ++again) { // over another one, too
    auto file = OutputFile::create(path, "-o");
    ASSERT_TRUE(file && file->write(print));
  }
  EXPECT_EQ(entries(in), 1);
  EXPECT_EQ((*llvm::MemoryBuffer::getFile(path))->getBuffer(), "all of it");
  fs::remove_directories(in);
}

TEST(OutputFile, RefusesWhereNothingCanBeWritten) {
  std::string in = folder();
  for (const std::string &path : {std::string(), in, in + "/none/file", std::string("/dev/null")})
    EXPECT_FALSE(OutputFile::create(path, "-o")) << path;
  auto file = OutputFile::create(in + "/file", "-o");
  fs::remove_directories(in);
  EXPECT_FALSE(file->write(print));
}

} // namespace
