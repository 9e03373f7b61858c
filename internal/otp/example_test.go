package otp_test

import (
	"fmt"
	"time"

	"userd/internal/otp"
)

func Example() {
	secret, _ := otp.ParseSecret("GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ")
	fmt.Println(otp.URI("Example Inc", "ann", secret))

	now := time.Unix(1111111109, 0)
	var lastStep int64 // stored with the secret
	for range 2 {
		step, ok, reused := otp.Match(secret, "081804", now, lastStep)
		fmt.Println(step, ok, reused)
		if ok {
			lastStep = step
		}
	}
	// Output:
	// otpauth://totp/Example%20Inc:ann?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Example%20Inc
	// 37037036 true false
	// 37037036 false true
}

func ExampleParse() {
	for _, typed := range []string{
		"081 804",
		"ABCDEF-GHIJKL-MNOPQR-STUVWX",
		"abcdef ghljkl mn0pqr stuvwx",
		"correct horse battery",
	} {
		kind, code := otp.Parse(typed)
		fmt.Println(kind == otp.TOTP, kind == otp.Recovery, code)
	}
	// Output:
	// true false 081804
	// false true ABCDEFGHIJKIMNOPQRSTUVWX
	// false true ABCDEFGHIJKIMNOPQRSTUVWX
	// false false
}
