package qr

import (
	"io"
	"strings"
)

// Print draws a code with its quiet zone in a terminal of UTF-8. A line has two rows of
// modules, and a column is one module, which is about square in most fonts.
//
// With color, the code is black on white, whatever the colors of the terminal are. It sets
// them by number in the palette of 256 colors, because themes change the first 16.
// Without color, light modules have the color of text: this is right on a dark
// background, and many scanners also read the inverse.
func (c *Code) Print(w io.Writer, color bool) error {
	blocks, begin, end := [4]string{"█", "▀", "▄", " "}, "", "\n"
	if color {
		blocks, begin, end = [4]string{" ", "▄", "▀", "█"}, "\x1b[38;5;16;48;5;231m", "\x1b[0m\n"
	}
	var text strings.Builder
	for y := -QuietZone; y < c.size+QuietZone; y += 2 {
		text.WriteString(begin)
		for x := -QuietZone; x < c.size+QuietZone; x++ {
			block := 0
			if c.Dark(x, y) {
				block += 2
			}
			if c.Dark(x, y+1) {
				block++
			}
			text.WriteString(blocks[block])
		}
		text.WriteString(end)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// String returns the rows of the code from the top, without the quiet zone, with a comma between
// them. A dark module is 1, and a light one is 0.
func (c *Code) String() string {
	rows := make([]string, c.size)
	for y := range rows {
		for x := range c.size {
			if c.Dark(x, y) {
				rows[y] += "1"
			} else {
				rows[y] += "0"
			}
		}
	}
	return strings.Join(rows, ",")
}
