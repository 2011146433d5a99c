/* The instructions of the matrix unit AMX that native.c uses, in plain C, for processors without it: tests/fast/conftest.py
   compiles native.c after this file. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static _Thread_local float tile_registers[8][16][16];

static void load_tile(int tile, const void *from, int64_t step) {
    for (int r = 0; r < 16; r++) memcpy(tile_registers[tile][r], (const char *)from + r * step, 64);
}

static void store_tile(int tile, void *to, int64_t step) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * step, tile_registers[tile][r], 64);
}

static float half_of(float pair, int odd) {
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    bits = odd ? bits & 0xffff0000u : bits << 16;
    memcpy(&pair, &bits, 4);
    return pair;
}

static void add_products_of_pairs(int c, int a, int b) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int odd = 0; odd < 2; odd++)
                    tile_registers[c][r][n] += half_of(tile_registers[a][r][k], odd) * half_of(tile_registers[b][k][n], odd);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(sizes) (void)(sizes)
#define _tile_release() (void)0
#define _tile_zero(tile) memset(tile_registers[tile], 0, sizeof tile_registers[tile])
#define _tile_loadd load_tile
#define _tile_stored store_tile
#define _tile_dpbf16ps add_products_of_pairs
