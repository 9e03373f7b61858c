package prom_test

import (
	"fmt"
	"os"
	"time"

	"userd/internal/prom"
)

func Example() {
	answers := prom.NewCounters("status", "200", "404")
	durations := prom.NewHistogram(int64(time.Second), int64(10*time.Millisecond), int64(time.Second))

	// Each request counts itself.
	answers.Add("200")
	durations.Observe(int64(25 * time.Millisecond))

	// GET /metrics answers with this text and prom.ContentType.
	var page prom.Page
	page.Counters("answers_total", "Answers by status.", answers)
	page.Family("answer_duration_seconds", "histogram", "Durations of answers.")
	page.Histogram("answer_duration_seconds", prom.Labels("route", "/"), durations)
	page.Gauge("queue_length", "Requests that wait.", 3)
	if _, err := os.Stdout.Write(page.Bytes()); err != nil {
		fmt.Println(err)
	}

	// Output:
	// # HELP answers_total Answers by status.
	// # TYPE answers_total counter
	// answers_total{status="200"} 1
	// answers_total{status="404"} 0
	// # HELP answer_duration_seconds Durations of answers.
	// # TYPE answer_duration_seconds histogram
	// answer_duration_seconds_bucket{route="/",le="0.01"} 0
	// answer_duration_seconds_bucket{route="/",le="1"} 1
	// answer_duration_seconds_bucket{route="/",le="+Inf"} 1
	// answer_duration_seconds_sum{route="/"} 0.025
	// answer_duration_seconds_count{route="/"} 1
	// # HELP queue_length Requests that wait.
	// # TYPE queue_length gauge
	// queue_length 3
}
