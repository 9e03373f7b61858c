package certs_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"time"

	"userd/internal/certs"
	"userd/internal/certs/certstest"
)

// A server serves the certificate that another program, such as certbot, keeps
// in two files.
func ExampleOpenFiles() {
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	certFile, keyFile, err := certstest.New(90*24*time.Hour, "www.example.com").Write(dir)
	if err != nil {
		panic(err)
	}

	files, err := certs.OpenFiles(certFile, keyFile, nil, slog.Default())
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go files.Run(ctx)

	config := files.TLSConfig() // for http.Server.TLSConfig
	cert, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.com"})
	fmt.Println(tls.VersionName(config.MinVersion), cert.Leaf.DNSNames, err)
	// Output: TLS 1.2 [www.example.com] <nil>
}

// Port 80 redirects to HTTPS, and answers the challenges of the ACME server.
func ExampleACME_HTTPHandler() {
	source := certs.NewACME(certs.ACMEOptions{
		Domains:   []string{"www.example.com"},
		Directory: "https://acme-v02.api.letsencrypt.org/directory",
		Dir:       "certs",
	}, slog.Default())
	port80 := source.HTTPHandler() // for an http.Server on port 80
	for _, target := range []string{"http://www.example.com/list?page=2", "http://other.example/"} {
		answer := httptest.NewRecorder()
		port80.ServeHTTP(answer, httptest.NewRequest("GET", target, nil))
		fmt.Println(answer.Code, answer.Header().Get("Location"))
	}
	// Output:
	// 301 https://www.example.com/list?page=2
	// 421
}
