// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 that says what a driver would say on another machine: that it knows CUDA up to
// STAND_IN_VERSION, and that there is no GPU. Without STAND_IN_VERSION: none of its functions.
#include <string_view>

#ifdef STAND_IN_VERSION

namespace {

constexpr int kNoDevice = 100;
constexpr int kNotInitialized = 3;

}  // namespace

extern "C" {

int cuInit(unsigned /*flags*/) { return kNoDevice; }
int cuDriverGetVersion(int* version) {
  *version = STAND_IN_VERSION;
  return 0;
}
int cuGetProcAddress(const char* name, void** address, int /*version*/, unsigned long /*flags*/);
int cuGetProcAddress_v2(const char* name, void** address, int version, unsigned long flags,
                        int* status) {
  if (status != nullptr) *status = 0;
  return cuGetProcAddress(name, address, version, flags);
}

// All others: nobody comes so far.
int cuDeviceGet() { return kNotInitialized; }
int cuDevicePrimaryCtxRetain() { return kNotInitialized; }
int cuCtxGetCurrent() { return kNotInitialized; }
int cuCtxPushCurrent_v2() { return kNotInitialized; }
int cuCtxPopCurrent_v2() { return kNotInitialized; }
int cuStreamGetCtx() { return kNotInitialized; }
int cuStreamWaitValue32_v2() { return kNotInitialized; }
int cuPointerGetAttributes() { return kNotInitialized; }
int cuGetExportTable() { return kNotInitialized; }

int cuGetProcAddress(const char* name, void** address, int /*version*/, unsigned long /*flags*/) {
  const std::string_view wanted = name;
  if (wanted == "cuInit") {
    *address = reinterpret_cast<void*>(cuInit);
  } else if (wanted == "cuDriverGetVersion") {
    *address = reinterpret_cast<void*>(cuDriverGetVersion);
  } else if (wanted == "cuGetProcAddress") {
    *address = reinterpret_cast<void*>(cuGetProcAddress_v2);
  } else {
    *address = reinterpret_cast<void*>(cuGetExportTable);
  }
  return 0;
}

}  // extern "C"

#endif
