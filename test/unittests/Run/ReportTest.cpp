// What can't be right about a measurement is said, and nothing else is.
#include "Run.h"

#include <gtest/gtest.h>

using namespace aligned;

namespace {

DecodeReport measured(const char *policy) {
  DecodeReport report;
  report.policy = policy;
  report.errorMean = 1e-4;
  return report;
}

TEST(Complaint, ErrorsThatNobodyAnnounces) {
  DecodeReport report = measured("balanced");
  report.toleranceMet = 0.1;
  report.flagged = 0.2;
  EXPECT_EQ(complaintAbout(report), "policy 'balanced': expected errors within twice the tolerance or estimates that say otherwise, got 90 % of errors beyond, of which estimates announce 20 %");
  report.flagged = 0.8;
  EXPECT_FALSE(complaintAbout(report));
}

TEST(Complaint, BrokenBounds) {
  DecodeReport report = measured("alignedkv");
  report.boundViolations = 0;
  EXPECT_FALSE(complaintAbout(report));
  report.boundViolations = 2;
  EXPECT_EQ(complaintAbout(report), "policy 'alignedkv': expected no error beyond its proven bound, got 2");
}

TEST(Complaint, ExactIsExact) {
  DecodeReport report = measured("exact");
  EXPECT_FALSE(complaintAbout(report));
  report.errorMean = 0.97;
  EXPECT_EQ(complaintAbout(report), "policy 'exact': expected the error of 16 bits, got a mean of 9.7e-01");
  report.errorMean = NAN; // a capture with values that are not finite
  EXPECT_FALSE(complaintAbout(report));
}

} // namespace
