// Rows of shared memory without padding, so that copies fill whole lines of 128 bytes, in an order that lets ldmatrix
// read the same 16 bytes of 8 rows in a row without meeting a bank twice: unit u of row r lies at u ^ x(r).
//
//   64-byte rows, units of 16 bytes as (row, unit)      128 bytes: 00 01 02 03 10 11 12 13
//                                                                  21 20 23 22 31 30 33 32   x(r) = r / 2 % 4
//                                                                  42 43 40 41 52 53 50 51
#pragma once
#include "types.cuh"

// Units that x permutes among themselves: the largest power of two, at most 8, that divides the units of a row.
__host__ __device__ constexpr u32 swizzle_span(u32 row_bytes) {
    return row_bytes / 16 % 8 == 0 ? 8 : row_bytes / 16 % 4 == 0 ? 4 : row_bytes / 16 % 2 == 0 ? 2 : 1;
}

// Byte offset of a unit.
template <u32 kRow>
__device__ __forceinline__ u32 swizzled(u32 row, u32 unit) {
    constexpr u32 kSpan = swizzle_span(kRow);
    return row * kRow + (unit ^ row / (8 / kSpan) % kSpan) * 16;
}

// From the address of (row, unit) with unit 0 or 1 to that of (row + 8 groups, unit + 2 pairs), both constants.
template <u32 kRow>
__device__ __forceinline__ u32 swizzled_step(u32 address, u32 groups, u32 pairs) {
    constexpr u32 kSpan = swizzle_span(kRow);
    return (address ^ 2 * pairs % kSpan * 16) + 2 * pairs / kSpan * kSpan * 16 + groups * 8 * kRow;
}
