package qr_test

import (
	"fmt"
	"os"

	"userd/internal/qr"
)

func Example() {
	code, err := qr.Encode("https://example.com")
	if err != nil {
		fmt.Println(err)
		return
	}
	code.Print(os.Stdout, false)
	// Output:
	// █████████████████████████████████
	// █████████████████████████████████
	// ████ ▄▄▄▄▄ █▄▀▀▄▄█▄█▀█ ▄▄▄▄▄ ████
	// ████ █   █ ███▄█  ▄█ █ █   █ ████
	// ████ █▄▄▄█ ██▄▀▄▀▄ █ █ █▄▄▄█ ████
	// ████▄▄▄▄▄▄▄█ █ ▀▄▀▄▀ █▄▄▄▄▄▄▄████
	// ████ ▄█▄ █▄▀▀ ▄▄▀ ▀▀ ▀▄▀▀▀▀▀▄████
	// ████▄▀▀▄▀▄▄██▀  ▀ █▄▄ ▀ ▄ ▀▀ ████
	// ████ ▄ ██▄▄▄▄▄█▄▄ ▀  █▄▄▀██▀▄████
	// ████ ▄▀ ▀▄▄▀███ ▄▄█▄▄▀ ▀▄  ▄ ████
	// ████▄█▄█▄█▄▄▀█ ▀▀▀ █ ▄▄▄ █  █████
	// ████ ▄▄▄▄▄ ██▀▀▄▀█▀▀ █▄█ ██▀▄████
	// ████ █   █ █ ▄▀█▄▄ ▄   ▄▄██▀ ████
	// ████ █▄▄▄█ █▀ ▀█▄█  █▄█▀ ▄   ████
	// ████▄▄▄▄▄▄▄█▄█▄██▄▄█▄█▄██▄██▄████
	// █████████████████████████████████
	// █████████████████████████████████
}

// The path of an SVG picture with one square for each dark module.
func ExampleCode_Dark() {
	code, err := qr.Encode("userd")
	if err != nil {
		fmt.Println(err)
		return
	}
	path := ""
	for y := range code.Size() {
		for x := range code.Size() {
			if code.Dark(x, y) {
				path += fmt.Sprintf("M%d,%dh1v1h-1z", x+qr.QuietZone, y+qr.QuietZone)
			}
		}
	}
	fmt.Println(code.Size()+2*qr.QuietZone, path[:52])
	// Output:
	// 29 M4,4h1v1h-1zM5,4h1v1h-1zM6,4h1v1h-1zM7,4h1v1h-1zM8,4
}
