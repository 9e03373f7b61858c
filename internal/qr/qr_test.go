package qr

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var peers = flag.Bool("peers", false, "test with zbarimg of Debian, which must be installed")

// longest is how many bytes each version holds (table 7 of the standard, level L).
var longest = [...]int{1: 17, 32, 53, 78, 106, 134, 154, 192, 230, 271, 321, 367, 425, 458, 520}

// rows returns the modules of a code, a dark one as # and a light one as a full stop.
func rows(c *Code) string {
	return strings.NewReplacer("0", ".", "1", "#", ",", "\n").Replace(c.String()) + "\n"
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The command qrencode -8 -l L -t ASCII -m 0 drew these codes: one for each mask, and
// the first and last versions of each structure.
func TestEncodeDrawsTheCodesOfQrencode(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/qrencode.txt")
	if err != nil {
		t.Fatal(err)
	}
	golden := strings.Split(strings.TrimSpace(string(data)), "\n\n")
	if len(golden) != 12 {
		t.Fatalf("%d codes", len(golden))
	}
	masks := make(map[int]bool)
	for _, g := range golden {
		text, want, _ := strings.Cut(g+"\n", "\n")
		c, err := Encode(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got := rows(c); got != want {
			t.Errorf("%q is\n%swant\n%s", text, got, want)
		}
		masks[4*btoi(!c.Dark(2, 8))+2*btoi(c.Dark(3, 8))+btoi(!c.Dark(4, 8))] = true
	}
	if len(masks) != 8 {
		t.Errorf("the codes have %d masks", len(masks))
	}
}

// The example of annex I, the digits 01234567 with level M.
func TestCorrectHasTheVectorOfTheStandard(t *testing.T) {
	t.Parallel()
	data := []byte{0x10, 0x20, 0x0C, 0x56, 0x61, 0x80, 0xEC, 0x11, 0xEC, 0x11, 0xEC, 0x11, 0xEC, 0x11, 0xEC, 0x11}
	want := []byte{0xA5, 0x24, 0xD4, 0xC1, 0xED, 0x36, 0xC7, 0x87, 0x2C, 0x55}
	if got := correct(data, len(want)); !bytes.Equal(got, want) {
		t.Errorf("correct returned %X, want %X", got, want)
	}
}

// A block is a polynomial, and the first powers of 2 are its zeros.
func TestEachBlockHasItsZeros(t *testing.T) {
	t.Parallel()
	for number := 1; number < len(versions); number++ {
		v := versions[number]
		data := make([]byte, v.codewords/v.blocks-v.correction)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		zero := byte(1)
		for range v.correction {
			var sum byte
			for _, b := range append(data, correct(data, v.correction)...) {
				sum = multiply(sum, zero) ^ b
			}
			if sum != 0 {
				t.Errorf("version %d: the value at %d is %d", number, zero, sum)
			}
			zero = multiply(zero, 2)
		}
	}
}

// Tables C.1 and D.1 of the standard.
func TestFormatAndVersionHaveTheBitsOfTheStandard(t *testing.T) {
	t.Parallel()
	for mask, want := range []string{
		"111011111000100", "111001011110011", "111110110101010", "111100010011101",
		"110011000101111", "110001100011000", "110110001000001", "110100101110110",
	} {
		c := draw(nil, 1, mask)
		left, right := "", ""
		for x := range 8 { // row 8, from the left and to the right end
			if x != 6 {
				left += fmt.Sprint(btoi(c.Dark(x, 8)))
			}
			right += fmt.Sprint(btoi(c.Dark(c.Size()-8+x, 8)))
		}
		up, down := "", ""
		for y := 8; y >= 0; y-- { // column 8, upwards
			if y != 6 {
				up += fmt.Sprint(btoi(c.Dark(8, y)))
			}
			if y < 7 {
				down += fmt.Sprint(btoi(c.Dark(8, c.Size()-7+y)))
			}
		}
		if left+up != want || down+right != want {
			t.Errorf("mask %d: %s and %s, want %s", mask, left+up, down+right, want)
		}
	}
	for number, want := range map[int]int{7: 0x07C94, 8: 0x085BC, 9: 0x09A99, 10: 0x0A4D3, 15: 0x0F928} {
		c, upper, lower := draw(nil, number, 0), 0, 0
		for i := 17; i >= 0; i-- {
			near, far := i/3, c.Size()-11+i%3
			upper, lower = upper<<1|btoi(c.Dark(far, near)), lower<<1|btoi(c.Dark(near, far))
		}
		if upper != want || lower != want {
			t.Errorf("version %d: %#x and %#x, want %#x", number, upper, lower, want)
		}
	}
}

// The modules that the patterns leave free are as many as the codewords need, but for up
// to 7. So the table of versions agrees with what is drawn.
func TestEachVersionHasRoomForItsCodewords(t *testing.T) {
	t.Parallel()
	for number := 1; number < len(versions); number++ {
		c, free := draw(nil, number, 0), 0
		for _, fixed := range c.fixed {
			free += btoi(!fixed)
		}
		if free/8 != versions[number].codewords {
			t.Errorf("version %d has %d free modules for %d codewords", number, free, versions[number].codewords)
		}
		codewords, ok := encode(strings.Repeat("x", longest[number]), number)
		if !ok || len(codewords) != versions[number].codewords {
			t.Errorf("version %d: %d codewords, want %d", number, len(codewords), versions[number].codewords)
		}
	}
}

func TestEncodeChoosesTheSmallestVersion(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("\x00\xff", 300)
	for number := 1; number < len(versions); number++ {
		shortest := 0
		if number > 1 {
			shortest = longest[number-1] + 1
		}
		for _, n := range []int{shortest, longest[number]} {
			if c, err := Encode(text[:n]); err != nil || c.Size() != 17+4*number {
				t.Errorf("%d bytes: %v, want version %d", n, err, number)
			}
		}
	}
	for _, n := range []int{MaxLen + 1, 600} {
		if c, err := Encode(text[:n]); !errors.Is(err, ErrTooLong) || c != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if longest[len(longest)-1] != MaxLen {
		t.Errorf("MaxLen is %d", MaxLen)
	}
}

func TestLinePenalty(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line string
		want int
	}{
		{"#.#.", 0},
		{"####", 0},
		{"#####", 3},
		{"..######.", 4},
		{".....#######", 3 + 5},
		{"#.###.#", 40},
		{".#.#.###.#..#.#.#", 0}, // too little light on both sides
		{".#.#.###.#....#.#", 40},
		{"#.#....#.###.#..#.#", 40},
		{"##..######..##", 4 + 40},
		{"#.#.....##..######..##..#.#", 3 + 4},
		{"#.#........##..######..##..#.#", 6 + 4 + 40},
		{"#.##.#", 0},
		{"#.####.#", 0},
	} {
		if got := linePenalty(len(c.line), func(i int) bool { return c.line[i] == '#' }); got != c.want {
			t.Errorf("%s has penalty %d, want %d", c.line, got, c.want)
		}
	}
}

func TestPenalty(t *testing.T) {
	t.Parallel()
	const size = 21
	for _, c := range []struct {
		name string
		dark func(x, y int) bool
		want int
	}{
		{"all light", func(x, y int) bool { return false }, 2*size*(3+16) + 20*20*3 + 10*10},
		{"all dark", func(x, y int) bool { return true }, 2*size*(3+16) + 20*20*3 + 10*10},
		{"a chessboard", func(x, y int) bool { return (x+y)%2 == 0 }, 0},
		// 12 of 21 columns are dark, 57 %. The squares are between the last three columns.
		{"stripes", func(x, y int) bool { return x%2 == 0 || x == 19 }, size*(3+16) + 2*20*3 + 10},
	} {
		code := &Code{size: size, dark: make([]bool, size*size)}
		for i := range code.dark {
			code.dark[i] = c.dark(i%size, i/size)
		}
		if got := code.penalty(); got != c.want {
			t.Errorf("%s has penalty %d, want %d", c.name, got, c.want)
		}
	}
}

func TestModulesOutsideACodeAreLight(t *testing.T) {
	t.Parallel()
	c, err := Encode("userd")
	if err != nil {
		t.Fatal(err)
	}
	for i := -1; i <= c.Size(); i++ {
		if c.Dark(-1, i) || c.Dark(i, -1) || c.Dark(c.Size(), i) || c.Dark(i, c.Size()) {
			t.Errorf("a module next to row or column %d is dark", i)
		}
	}
}

// The test reads each line back as two rows of modules.
func TestPrint(t *testing.T) {
	t.Parallel()
	c, err := Encode("otpauth://totp/userd:ann?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=userd")
	if err != nil {
		t.Fatal(err)
	}
	halves := map[rune][2]bool{' ': {false, false}, '▀': {true, false}, '▄': {false, true}, '█': {true, true}}
	for _, color := range []bool{false, true} {
		var out bytes.Buffer
		if err := c.Print(&out, color); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != (c.Size()+2*QuietZone+1)/2 || len(lines) > 23 {
			t.Errorf("color %v: %d lines", color, len(lines))
		}
		for i, line := range lines {
			if color {
				ok := strings.HasPrefix(line, "\x1b[38;5;16;48;5;231m") && strings.HasSuffix(line, "\x1b[0m")
				line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[38;5;16;48;5;231m"), "\x1b[0m")
				if !ok || strings.Contains(line, "\x1b") {
					t.Errorf("line %d does not set and reset the colors: %q", i, line)
				}
			}
			blocks := []rune(line)
			if len(blocks) != c.Size()+2*QuietZone {
				t.Fatalf("color %v: line %d has %d columns", color, i, len(blocks))
			}
			for j, block := range blocks {
				half, ok := halves[block]
				x, y := j-QuietZone, 2*i-QuietZone
				// Text is black with color, and light without.
				if !ok || half[0] != (c.Dark(x, y) == color) || half[1] != (c.Dark(x, y+1) == color) {
					t.Errorf("color %v: column %d of line %d is %q", color, j, i, block)
				}
			}
		}
	}
	full, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := c.Print(full, true); err == nil {
		t.Error("Print hides the error of its writer")
	}
}

func TestZbarReadsTheCodes(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	t.Parallel()
	const scale = 4
	dir := t.TempDir()
	for number := 1; number < len(versions); number++ {
		text := strings.Repeat("otpauth://totp/userd:ann?secret=GEZDGNBVGY3TQOJQ&issuer=userd ", 10)[:longest[number]]
		text = strings.TrimRight(text, " ")
		c, err := Encode(text)
		if err != nil {
			t.Fatal(err)
		}
		side := scale * (c.Size() + 2*QuietZone)
		picture := image.NewGray(image.Rect(0, 0, side, side))
		for x := range side {
			for y := range side {
				if !c.Dark(x/scale-QuietZone, y/scale-QuietZone) {
					picture.SetGray(x, y, color.Gray{Y: 255})
				}
			}
		}
		var data bytes.Buffer
		if err := png.Encode(&data, picture); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "code.png")
		if err := os.WriteFile(file, data.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", file).Output()
		if err != nil || string(out) != text+"\n" {
			t.Errorf("version %d: zbarimg reads %q: %v", number, out, err)
		}
	}
}
