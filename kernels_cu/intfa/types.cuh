// Integers and the numbers of the input and output types. NVRTC has no <cstdint>.
#pragma once

typedef signed char s8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

// Types of inputs and outputs as run-time arguments: the host's cupy_intfa/launch.py counts the same way.
enum Dtype : s32 { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kFltMin = 1.17549435e-38f;
constexpr float kMaxScore = 4194304.0f;  // in units of log2, about 3 million nats
constexpr s32 kNoMask = 0x3fffffff;      // causal_offset of a call without a mask

#define INTFA_INF __int_as_float(0x7f800000)
#define INTFA_NAN __int_as_float(0x7fffffff)
