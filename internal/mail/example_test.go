package mail_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"userd/internal/mail"
)

func Example() {
	transport, err := mail.Parse("log:", mail.Options{Log: os.Stdout})
	if err != nil {
		panic(err)
	}
	from, err := mail.ParseSender("Example <no-reply@example.com>")
	if err != nil {
		panic(err)
	}
	template, err := mail.ParseTemplate("reset.txt", "Subject: Your password\n\nHello {user},\nset a new one at {link}\n", []string{"user", "link"}, "link")
	if err != nil {
		panic(err)
	}
	subject, text := template.Render(map[string]string{"user": "ann", "link": "https://app.example.com/reset#ur_1"})
	err = transport.Send(context.Background(), &mail.Message{
		ID:      "17.1@example.com",
		Date:    time.Now(),
		From:    from,
		To:      "ann@example.org",
		Subject: subject,
		Text:    text,
	})
	switch failure, _ := errors.AsType[*mail.DeliveryError](err); {
	case err == nil:
		fmt.Println("sent")
	case failure.Permanent:
		fmt.Println("failed:", failure)
	default:
		fmt.Println("try again in", max(mail.RetryDelay(1, 0.5), failure.RetryAfter))
	}
	// Output:
	// To: ann@example.org
	// Subject: Your password
	//
	// Hello ann,
	// set a new one at https://app.example.com/reset#ur_1
	//
	// sent
}
