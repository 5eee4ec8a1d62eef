/* Sets what aligned_last_error() returns on this thread: for libraries that report through the same C convention. */
#ifndef ALIGNED_RUNTIME_ERROR_H
#define ALIGNED_RUNTIME_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

/* Copies the message, of any length. */
void aligned_set_last_error(const char *message);

#ifdef __cplusplus
}
#endif
#endif
