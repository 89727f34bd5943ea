// A codebook of 4 bits as a kernel argument; the host makes it in cupy_intfa/quantize/formats_launch.py.
#pragma once
#include "types.cuh"

constexpr s32 kGroup = 64;    // elements that share a scale
constexpr s32 kBuckets = 34;  // of a sixteenth, from -17/16 on

struct Table {
    float cut[kBuckets];  // the one cut between levels in a bucket; infinity where there is none
    u32 code[kBuckets];   // the code below it; the one above is its successor
    float level[16];      // by code, increasing
    u32 zeros;            // eight times the code of 0
};
