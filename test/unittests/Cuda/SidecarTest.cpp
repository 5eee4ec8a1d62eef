// A sidecar is read before a driver is looked for: what is wrong with it is told wherever the file is.

#include "Fixture.h"

using namespace aligned::test;

namespace {

void expectRefused(const std::string &text, const std::string &message) {
  ProgramPtr program(aligned_program_load("", text.c_str()));
  EXPECT_FALSE(program);
  EXPECT_EQ(std::string(aligned_last_error()).substr(0, message.size()), message);
}

void expectRefused(const std::string &what, const std::string &by, const std::string &message) {
  expectRefused(replaced(sidecar(), what, by), message);
}

TEST(Sidecar, NoJson) {
  expectRefused(std::string(""), "kernels.json: expected JSON, got parse error at line 1, column 1");
  expectRefused(std::string("{\"version\": 2,}"), "kernels.json: expected JSON, got parse error at line 1");
  expectRefused(std::string("[1]"), "kernels.json: expected an object, got an array of 1");
  expectRefused(std::string(100000, '['), "kernels.json: expected JSON, got parse error at line 1");
  ProgramPtr none(aligned_program_load(nullptr, "{}"));
  EXPECT_STREQ(aligned_last_error(), "expected PTX and a sidecar, got null");
}

TEST(Sidecar, Head) {
  expectRefused("\"version\": 2", "\"version\": 1", "kernels.json: expected an integer from 2 to 2 at version, got 1");
  expectRefused("\"version\": 2", "\"version\": 18446744073709551615",
                "kernels.json: expected an integer from 2 to 2 at version, got 18446744073709551615");
  expectRefused("\"version\": 2, ", "", "kernels.json: expected a member at version, got none");
  expectRefused("\"chip\": \"sm_70\"", "\"chip\": 70", "kernels.json: expected a string at chip, got 70");
  expectRefused("\"ptx\": 70", "\"ptx\": 7.5", "kernels.json: expected an integer from 10 to 999 at ptx, got 7.5");
  expectRefused("\"threads\": 32", "\"threads\": 2048",
                "kernels.json: expected an integer from 1 to 1024 at kernels[0].threads, got 2048");
  expectRefused("\"shared\": 65536", "\"shared\": 262144",
                "kernels.json: expected an integer from 0 to 232448 at kernels[5].shared, got 262144");
  expectRefused("append_advance", "append_pack",
                "kernels.json: expected a name that no other kernel has at kernels[1].name, got \"append_pack\"");
}

TEST(Sidecar, Tuning) {
  auto expectTuningRefused = [](const std::string &tuning, const std::string &message) {
    expectRefused("\"ptx\": 70", "\"ptx\": 70, \"tuning\": " + tuning, message);
  };
  std::string good = R"({"blocks_per_multiprocessor": 1, "tiles_per_split": 8, "most_splits": 64, "chained": 0})";
  auto with = [&](const std::string &what, const std::string &by) { return replaced(good, what, by); };
  expectTuningRefused("2", "kernels.json: expected an object at tuning, got 2");
  expectTuningRefused("{}", "kernels.json: expected a member at tuning.blocks_per_multiprocessor, got none");
  expectTuningRefused(with("\"blocks_per_multiprocessor\": 1", "\"blocks_per_multiprocessor\": 0"),
                      "kernels.json: expected an integer from 1 to 32 at tuning.blocks_per_multiprocessor, got 0");
  expectTuningRefused(with("8", "\"8\""), "kernels.json: expected an integer from 1 to 1048576 at tuning.tiles_per_split, got \"8\"");
  expectTuningRefused(with("64", "65536"), "kernels.json: expected an integer from 1 to 65535 at tuning.most_splits, got 65536");
  expectTuningRefused(with("\"chained\": 0", "\"chained\": 2"),
                      "kernels.json: expected an integer from 0 to 1 at tuning.chained, got 2");
  expectTuningRefused(with("\"chained\": 0", "\"chained\": 1"),
                      "kernels.json: expected 0 at tuning.chained for PTX of sm_70 in which 0 of 6 kernels wait for those ahead of "
                      "them, got 1");
}

TEST(Sidecar, Site) {
  expectRefused("\"heads\": 3", "\"heads\": 0", "kernels.json: expected an integer from 1 to 65535 at decode[0].heads, got 0");
  expectRefused("\"queries\": 1", "\"queries\": 2",
                "kernels.json: expected a divisor of the 3 query rows at decode[0].queries, got 2");
  expectRefused("\"key_dim\": 16", "\"key_dim\": \"16\"",
                "kernels.json: expected an integer from 16 to 256 at decode[0].key_dim, got \"16\"");
  expectRefused("\"query\": \"f16\"", "\"query\": \"f8\"",
                "kernels.json: expected \"f16\", \"bf16\" or \"f32\" at decode[0].query, got \"f8\"");
  expectRefused("\"certified\": 0", "\"certified\": 2",
                "kernels.json: expected an integer from 0 to 1 at decode[0].certified, got 2");
  expectRefused("\"certified\": 0", "\"certified\": true",
                "kernels.json: expected an argument certificate at decode[0].arguments, got none");
  expectRefused("\"role\": \"key\"", "\"role\": \"value\"",
                "kernels.json: expected \"key\" at decode[0].key.role, got \"value\"");
  for (const char *widths : {"[4, 4, 4]", "[4, 5, 7]", "[4, 4, 4, 4, 4]"})
    expectRefused("\"widths\": [4, 4, 8]", std::string("\"widths\": ") + widths,
                  "kernels.json: expected up to 4 multiples of 4 that sum to 16 at decode[0].key.widths, got an array of ");
  expectRefused("\"widths\": [4, 4, 8]", "\"widths\": []",
                "kernels.json: expected an array of at least 1 at decode[0].key.widths, got an array of 0");
  expectRefused("\"widths\": [4, 4, 8]", "\"widths\": [12, 4]",
                "kernels.json: expected an integer from 4 to 8 at decode[0].key.widths[0], got 12");
}

TEST(Sidecar, Arguments) {
  expectRefused("[\"rows\", 3, \"capacity\"]", "3", "kernels.json: expected an array at decode[0].arguments[3].shape, got 3");
  expectRefused("[\"rows\", 3, \"capacity\"]", "[\"rows\", \"blocks\"]",
                "kernels.json: expected a number or one of rows, batch, kv_heads, capacity, tiles, splits, touched at "
                "decode[0].arguments[3].shape[1], got \"blocks\"");
  // What is made before caches grow can't have their length.
  expectRefused("[\"rows\", 3, \"capacity\"]", "[\"rows\", 3, \"tokens\"]",
                "kernels.json: expected a number or one of rows, batch, kv_heads, capacity, tiles, splits, touched at "
                "decode[0].arguments[3].shape[2], got \"tokens\"");
  expectRefused("[\"rows\", 3, \"capacity\"]", "[-1]", "kernels.json: expected a number or one of rows");
  expectRefused("[\"rows\", 3, 16]", "[\"rows\", 3, 17]",
                "kernels.json: expected as many elements as query has at decode[0].arguments[0].shape, got an array of 3");
  for (const char *shape : {"[\"rows\", \"tiles\"]", "[\"rows\", \"tiles\", 17]"})
    expectRefused("\"type\": \"u8\", \"shape\": [\"rows\", \"capacity\"]", std::string("\"type\": \"u8\", \"shape\": ") + shape,
                  "kernels.json: expected as many elements as key_bits has at decode[0].arguments[4].shape");
  expectRefused("\"name\": \"key_bits\", \"kind\": \"record\", \"type\": \"u8\"",
                "\"name\": \"key_bits\", \"kind\": \"record\", \"type\": \"f32\"",
                "kernels.json: expected \"u8\" for key_bits at decode[0].arguments[4].type, got \"f32\"");
  expectRefused("\"name\": \"key_bits\"", "\"name\": \"key_layers\"",
                "kernels.json: expected one of key_bits, value_bits for record at decode[0].arguments[4].name, got \"key_layers\"");
  expectRefused("\"name\": \"attn_mask\", \"kind\": \"input\", \"type\": \"i1\"",
                "\"name\": \"attn_mask\", \"kind\": \"input\", \"type\": \"i8\"",
                "kernels.json: expected \"f32\", \"f16\", \"bf16\" or \"i1\" for attn_mask at decode[1].arguments[4].type, got \"i8\"");
  for (const char *shape : {"[\"batch\", 1, 2, \"tokens\"]", "[\"batch\", 3, 1, \"tokens\"]", "[1, 1, 1, 1]"})
    expectRefused("[\"batch\", 1, 3, \"tokens\"]", shape,
                  "kernels.json: expected as many elements as attn_mask has at decode[1].arguments[4].shape");
  expectRefused("\"name\": \"sink_logits\", \"kind\": \"input\", \"type\": \"f32\", \"shape\": [2]",
                "\"name\": \"sink_logits\", \"kind\": \"input\", \"type\": \"f32\", \"shape\": [6]",
                "kernels.json: expected as many elements as sink_logits has at decode[1].arguments[3].shape");
  expectRefused("\"shape\": [\"rows\", 3, 8]", "\"shape\": [\"rows\", 3, 6]",
                "kernels.json: expected as many elements as certificate has at decode[1].arguments[8].shape");
  expectRefused("\"kind\": \"scratch\"", "\"kind\": \"memory\"",
                "kernels.json: expected \"input\", \"cache\", \"scratch\", \"record\", \"output\" or \"scalar\" at "
                "decode[0].arguments[3].kind, got \"memory\"");
  expectRefused("\"name\": \"scores\", \"kind\": \"scratch\", \"type\": \"f32\"",
                "\"name\": \"scores\", \"kind\": \"scratch\", \"type\": \"f31\"",
                "kernels.json: expected an element type, such as \"f32\" at decode[0].arguments[3].type, got \"f31\"");
  expectRefused(
      "\"name\": \"acc\"", "\"name\": \"out\"",
      "kernels.json: expected one of acc, max, sum, certificate for output at decode[0].arguments[6].name, got \"out\"");
  expectRefused("\"name\": \"max\"", "\"name\": \"acc\"", "kernels.json: expected");
  expectRefused("\"name\": \"scores\"", "\"name\": \"query\"",
                "kernels.json: expected a name that no other argument has at decode[0].arguments[3].name, got \"query\"");
  expectRefused("{\"name\": \"scale\", \"kind\": \"scalar\", \"type\": \"f32\"}, ", "",
                "kernels.json: expected an argument scale at decode[0].arguments, got none");
  expectRefused("\"name\": \"scale\", \"kind\": \"scalar\", \"type\": \"f32\"",
                "\"name\": \"scale\", \"kind\": \"scalar\", \"type\": \"i32\"",
                "kernels.json: expected \"f32\" for scale at decode[0].arguments[9].type, got \"i32\"");
  expectRefused("\"name\": \"splits\", \"kind\": \"scalar\", \"type\": \"i32\"",
                "\"name\": \"splits\", \"kind\": \"scalar\", \"type\": \"f32\"",
                "kernels.json: expected one of scale, finished, softcap, tolerance_factor, window, sinks, later for scalar at decode[0].arguments[10].name, got \"splits\"");
  expectRefused("\"name\": \"splits\", \"kind\": \"scalar\"", "\"name\": \"tokens\", \"kind\": \"scalar\"",
                "kernels.json: expected one of scale, finished, softcap, tolerance_factor, window, sinks, later for scalar at decode[0].arguments[10].name, got \"tokens\"");
  expectRefused("{\"name\": \"stride3\", \"kind\": \"scalar\", \"type\": \"i64\"}",
                "{\"name\": \"rows\", \"kind\": \"scalar\", \"type\": \"i64\"}",
                "kernels.json: expected an argument stride3 at append[0].arguments, got none");
  expectRefused("\"name\": \"data\", \"kind\": \"input\", \"type\": \"f16\"",
                "\"name\": \"data\", \"kind\": \"input\", \"type\": \"f32\"",
                "kernels.json: expected \"f16\" for data at append[0].arguments[1].type, got \"f32\"");
}

TEST(Sidecar, Launches) {
  expectRefused("{\"kernel\": \"decode_scores\"", "{\"kernel\": \"decode_score\"",
                "kernels.json: expected the name of one of the kernels at decode[0].launch[0].kernel, got \"decode_score\"");
  expectRefused("\"grid\": [\"splits\", \"rows\"]", "\"grid\": [\"splits\"]",
                "kernels.json: expected an array of 2 to 3 at decode[0].launch[0].grid, got an array of 1");
  expectRefused("\"grid\": [\"splits\", \"rows\"]", "\"grid\": [\"splits\", \"rows\", 1, 1]",
                "kernels.json: expected an array of 2 to 3 at decode[0].launch[0].grid, got an array of 4");
  expectRefused("\"grid\": [\"splits\", \"rows\"]", "\"grid\": [\"splits\", 1.5]",
                "kernels.json: expected a number or one of rows");
  expectRefused("[{\"kernel\": \"decode_scores\", \"grid\": [\"splits\", \"rows\"]}, {\"kernel\": \"decode_values\", \"grid\": "
                "[1, \"rows\"]}]",
                "[]", "kernels.json: expected an array of at least 1 at decode[0].launch, got an array of 0");
  expectRefused(",\n    \"drop\": [{\"kernel\": \"append_advance\", \"grid\": [1, 1]}]", "",
                "kernels.json: expected a member at append[0].drop, got none");
}

TEST(Sidecar, Sites) {
  std::string two = replaced(sidecar(), decodeJson(), decodeJson() + ", " + decodeJson());
  expectRefused(two, "kernels.json: expected a number that no other site has at decode[1].site, got 4");
}

TEST(Sidecar, DenseSites) {
  auto refused = [](const std::string &what, const std::string &by, const std::string &message) {
    expectRefused(replaced(sidecar(), decodeJson(), replaced(denseJson(), what, by)), message);
  };
  refused("\"kind\": \"dense\", \"role\": \"value\", \"element\": \"bf16\"",
          "\"kind\": \"fixed\", \"role\": \"value\", \"element\": \"bf16\", \"widths\": [4, 4, 8]",
          "kernels.json: expected \"dense\" as for the key at decode[0].value.kind, got \"fixed\"");
  refused("\"kind\": \"dense\", \"role\": \"key\", \"element\": \"f16\"",
          "\"kind\": \"fixed\", \"role\": \"key\", \"element\": \"f16\", \"widths\": [4, 4, 8]",
          "kernels.json: expected planes as for the key at decode[0].value.kind, got \"dense\"");
  refused("{\"name\": \"lengths\", \"kind\": \"input\", \"type\": \"i64\", \"shape\": [\"batch\"]},", "",
          "kernels.json: expected an argument lengths at decode[0].arguments, got none");
  refused("\"name\": \"lengths\", \"kind\": \"input\", \"type\": \"i64\"",
          "\"name\": \"lengths\", \"kind\": \"input\", \"type\": \"i32\"",
          "kernels.json: expected \"i64\" for lengths at decode[0].arguments[3].type, got \"i32\"");
  refused("\"name\": \"value\", \"kind\": \"input\", \"type\": \"bf16\"",
          "\"name\": \"value\", \"kind\": \"input\", \"type\": \"f16\"",
          "kernels.json: expected \"bf16\" for value at decode[0].arguments[2].type, got \"f16\"");
  refused("[\"rows\", \"capacity\", 16]", "[\"rows\", \"capacity\", 8]",
          "kernels.json: expected as many elements as key has at decode[0].arguments[1].shape, got an array of 3");
  refused("\"name\": \"key\", \"kind\": \"input\"", "\"name\": \"key\", \"kind\": \"cache\"",
          "kernels.json: expected no argument of kind cache at decode[0].arguments[1].name, got \"key\"");
  expectRefused("\"format\": {\"kind\": \"fixed\"", "\"format\": {\"kind\": \"dense\"",
                "kernels.json: expected \"fixed\" or \"float\" at append[0].format.kind, got \"dense\"");
  expectRefused("\"kind\": \"fixed\"", "\"kind\": \"sparse\"",
                "kernels.json: expected \"fixed\", \"float\" or \"dense\" at decode[0].key.kind, got \"sparse\"");
}

} // namespace
