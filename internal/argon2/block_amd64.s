//go:build !purego

#include "textflag.h"

// The compression function G of RFC 9106 section 3.5, with AVX2.
//
// A block has eight rows of 16 words of 64 bits. The permutation P of section 3.6
// works on 16 words v0 to v15. A vector Y has four words, so the macros below run two
// permutations concurrently, in Y0 to Y7. Y8 and Y9 are temporary. Y14 and Y15 hold
// the byte orders of the rotations by 24 and by 16.

DATA rotate24<>+0(SB)/8, $0x0201000706050403
DATA rotate24<>+8(SB)/8, $0x0a09080f0e0d0c0b
DATA rotate24<>+16(SB)/8, $0x0201000706050403
DATA rotate24<>+24(SB)/8, $0x0a09080f0e0d0c0b
GLOBL rotate24<>(SB), RODATA|NOPTR, $32

DATA rotate16<>+0(SB)/8, $0x0100070605040302
DATA rotate16<>+8(SB)/8, $0x09080f0e0d0c0b0a
DATA rotate16<>+16(SB)/8, $0x0100070605040302
DATA rotate16<>+24(SB)/8, $0x09080f0e0d0c0b0a
GLOBL rotate16<>(SB), RODATA|NOPTR, $32

// Section 3.6, GB: a = a + b + 2 * trunc(a) * trunc(b). t is temporary.
#define ADD(a, b, t) \
	VPMULUDQ a, b, t \
	VPADDQ   b, a, a \
	VPADDQ   t, t, t \
	VPADDQ   t, a, a

// Section 3.6: eight GB(a, b, c, d), four in a0 to d0 and four in a1 to d1.
#define GB(a0, b0, c0, d0, a1, b1, c1, d1) \
	/* a = a + b + 2 * trunc(a) * trunc(b) */ \
	ADD(a0, b0, Y8)              \
	ADD(a1, b1, Y9)              \
	/* d = (d XOR a) >>> 32 */   \
	VPXOR   a0, d0, d0           \
	VPXOR   a1, d1, d1           \
	VPSHUFD $0xb1, d0, d0        \
	VPSHUFD $0xb1, d1, d1        \
	/* c = c + d + 2 * trunc(c) * trunc(d) */ \
	ADD(c0, d0, Y8)              \
	ADD(c1, d1, Y9)              \
	/* b = (b XOR c) >>> 24 */   \
	VPXOR   c0, b0, b0           \
	VPXOR   c1, b1, b1           \
	VPSHUFB Y14, b0, b0          \
	VPSHUFB Y14, b1, b1          \
	/* a = a + b + 2 * trunc(a) * trunc(b) */ \
	ADD(a0, b0, Y8)              \
	ADD(a1, b1, Y9)              \
	/* d = (d XOR a) >>> 16 */   \
	VPXOR   a0, d0, d0           \
	VPXOR   a1, d1, d1           \
	VPSHUFB Y15, d0, d0          \
	VPSHUFB Y15, d1, d1          \
	/* c = c + d + 2 * trunc(c) * trunc(d) */ \
	ADD(c0, d0, Y8)              \
	ADD(c1, d1, Y9)              \
	/* b = (b XOR c) >>> 63 */   \
	VPXOR   c0, b0, b0           \
	VPXOR   c1, b1, b1           \
	VPADDQ  b0, b0, Y8           \
	VPADDQ  b1, b1, Y9           \
	VPSRLQ  $63, b0, b0          \
	VPSRLQ  $63, b1, b1          \
	VPXOR   Y8, b0, b0           \
	VPXOR   Y9, b1, b1

// Section 3.6, P on two rows of a block: Y0 to Y3 have the words of one row in order,
// Y4 to Y7 those of the next. The second four GB need v0 v5 v10 v15, v1 v6 v11 v12,
// v2 v7 v8 v13 and v3 v4 v9 v14 below each other. b, which is computed last, keeps its
// order v4 v5 v6 v7; the others turn: a to v3 v0 v1 v2, c to v9 v10 v11 v8, and d to
// v14 v15 v12 v13.
#define PERMUTE_ROWS \
	/* GB(v0, v4, v8, v12) to GB(v3, v7, v11, v15) */ \
	GB(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7) \
	VPERMQ $0x93, Y0, Y0 \
	VPERMQ $0x93, Y4, Y4 \
	VPERMQ $0x4e, Y3, Y3 \
	VPERMQ $0x4e, Y7, Y7 \
	VPERMQ $0x39, Y2, Y2 \
	VPERMQ $0x39, Y6, Y6 \
	/* GB(v3, v4, v9, v14), GB(v0, v5, v10, v15) to GB(v2, v7, v8, v13) */ \
	GB(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7) \
	VPERMQ $0x39, Y0, Y0 \
	VPERMQ $0x39, Y4, Y4 \
	VPERMQ $0x4e, Y3, Y3 \
	VPERMQ $0x4e, Y7, Y7 \
	VPERMQ $0x93, Y2, Y2 \
	VPERMQ $0x93, Y6, Y6

// Section 3.6, P on two columns of a block: Yn has v(2n) and v(2n+1) of the one column
// and then those of the next. Again b keeps its order, Y2 v4 v5 and Y3 v6 v7. a turns
// to Y0 v3 v0 and Y1 v1 v2, c to Y4 v9 v10 and Y5 v11 v8. For d, Y6 and Y7 change places.
#define PERMUTE_COLUMNS \
	/* GB(v0, v4, v8, v12) to GB(v3, v7, v11, v15) */ \
	GB(Y0, Y2, Y4, Y6, Y1, Y3, Y5, Y7) \
	VPALIGNR $8, Y1, Y0, Y8 \
	VPALIGNR $8, Y0, Y1, Y1 \
	VMOVDQA  Y8, Y0 \
	VPALIGNR $8, Y4, Y5, Y8 \
	VPALIGNR $8, Y5, Y4, Y5 \
	VMOVDQA  Y8, Y4 \
	/* GB(v3, v4, v9, v14), GB(v0, v5, v10, v15) to GB(v2, v7, v8, v13) */ \
	GB(Y0, Y2, Y4, Y7, Y1, Y3, Y5, Y6) \
	VPALIGNR $8, Y0, Y1, Y8 \
	VPALIGNR $8, Y1, Y0, Y1 \
	VMOVDQA  Y8, Y0 \
	VPALIGNR $8, Y5, Y4, Y8 \
	VPALIGNR $8, Y4, Y5, Y5 \
	VMOVDQA  Y8, Y4

// Section 3.5: R = X XOR Y, then P on each row of R gives Q, which scratch receives.
// Each of four rounds works on two rows.
#define ROWS \
	MOVQ    a+8(FP), SI          \
	MOVQ    b+16(FP), DX         \
	MOVQ    scratch+24(FP), BX   \
	VMOVDQU rotate24<>(SB), Y14  \
	VMOVDQU rotate16<>(SB), Y15  \
	MOVQ    $4, CX               \
rows:                                \
	VMOVDQU 0(SI), Y0            \
	VMOVDQU 32(SI), Y1           \
	VMOVDQU 64(SI), Y2           \
	VMOVDQU 96(SI), Y3           \
	VMOVDQU 128(SI), Y4          \
	VMOVDQU 160(SI), Y5          \
	VMOVDQU 192(SI), Y6          \
	VMOVDQU 224(SI), Y7          \
	VPXOR   0(DX), Y0, Y0        \
	VPXOR   32(DX), Y1, Y1       \
	VPXOR   64(DX), Y2, Y2       \
	VPXOR   96(DX), Y3, Y3       \
	VPXOR   128(DX), Y4, Y4      \
	VPXOR   160(DX), Y5, Y5      \
	VPXOR   192(DX), Y6, Y6      \
	VPXOR   224(DX), Y7, Y7      \
	PERMUTE_ROWS                 \
	VMOVDQU Y0, 0(BX)            \
	VMOVDQU Y1, 32(BX)           \
	VMOVDQU Y2, 64(BX)           \
	VMOVDQU Y3, 96(BX)           \
	VMOVDQU Y4, 128(BX)          \
	VMOVDQU Y5, 160(BX)          \
	VMOVDQU Y6, 192(BX)          \
	VMOVDQU Y7, 224(BX)          \
	ADDQ    $256, SI             \
	ADDQ    $256, DX             \
	ADDQ    $256, BX             \
	DECQ    CX                   \
	JNZ     rows

// Section 3.5: P on each column of Q gives Z. Each of four rounds works on two columns.
#define COLUMNS_BEGIN \
	MOVQ    dst+0(FP), DI        \
	MOVQ    a+8(FP), SI          \
	MOVQ    b+16(FP), DX         \
	MOVQ    scratch+24(FP), BX   \
	MOVQ    $4, CX               \
columns:                             \
	VMOVDQU 0(BX), Y0            \
	VMOVDQU 128(BX), Y1          \
	VMOVDQU 256(BX), Y2          \
	VMOVDQU 384(BX), Y3          \
	VMOVDQU 512(BX), Y4          \
	VMOVDQU 640(BX), Y5          \
	VMOVDQU 768(BX), Y6          \
	VMOVDQU 896(BX), Y7          \
	PERMUTE_COLUMNS

// Z XOR the two columns of a block.
#define XOR_COLUMNS(block) \
	VPXOR 0(block), Y0, Y0       \
	VPXOR 128(block), Y1, Y1     \
	VPXOR 256(block), Y2, Y2     \
	VPXOR 384(block), Y3, Y3     \
	VPXOR 512(block), Y4, Y4     \
	VPXOR 640(block), Y5, Y5     \
	VPXOR 768(block), Y6, Y6     \
	VPXOR 896(block), Y7, Y7

// Section 3.5: the result is Z XOR R, and R = X XOR Y.
#define COLUMNS_END \
	XOR_COLUMNS(SI)              \
	XOR_COLUMNS(DX)              \
	VMOVDQU Y0, 0(DI)            \
	VMOVDQU Y1, 128(DI)          \
	VMOVDQU Y2, 256(DI)          \
	VMOVDQU Y3, 384(DI)          \
	VMOVDQU Y4, 512(DI)          \
	VMOVDQU Y5, 640(DI)          \
	VMOVDQU Y6, 768(DI)          \
	VMOVDQU Y7, 896(DI)          \
	ADDQ    $32, DI              \
	ADDQ    $32, SI              \
	ADDQ    $32, DX              \
	ADDQ    $32, BX              \
	DECQ    CX                   \
	JNZ     columns              \
	VZEROUPPER                   \
	RET

// func compress(dst, a, b, scratch *block)
TEXT ·compress(SB), NOSPLIT, $0-32
	ROWS
	COLUMNS_BEGIN
	COLUMNS_END

// func compressXOR(dst, a, b, scratch *block)
TEXT ·compressXOR(SB), NOSPLIT, $0-32
	ROWS
	COLUMNS_BEGIN
	XOR_COLUMNS(DI) // section 3.2 step 6: the passes after the first
	COLUMNS_END

// func hasAVX2() bool
TEXT ·hasAVX2(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX // leaf 0: the last leaf
	CPUID
	CMPL AX, $7
	JLT  no
	MOVL $1, AX // leaf 1: ECX bit 27 is OSXSAVE, which XGETBV needs; bit 28 is AVX
	XORL CX, CX
	CPUID
	ANDL $0x18000000, CX
	CMPL CX, $0x18000000
	JNE  no
	XORL CX, CX // XCR0: the system saves the XMM (bit 1) and YMM (bit 2) registers
	XGETBV
	ANDL $6, AX
	CMPL AX, $6
	JNE  no
	MOVL $7, AX // leaf 7: EBX bit 5 is AVX2
	XORL CX, CX
	CPUID
	SHRL $5, BX
	ANDL $1, BX
	MOVB BX, ret+0(FP)
no:
	RET
