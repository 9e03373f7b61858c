package mail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"userd/internal/setting"
)

// A Template is a subject and a text with placeholders such as {link}.
type Template struct{ subject, text string }

// placeholder matches a placeholder even if its closing brace is missing, which
// ParseTemplate reports.
var placeholder = regexp.MustCompile(`\{[^{}\s]*\}?`)

// ParseTemplate parses the contents of a file: a line with "Subject: " and the subject, an
// empty line, and the text. The placeholders must be known, and those that are required
// must be in the text. A brace always begins a placeholder. A byte-order mark is ignored.
// The error begins with the file's name.
func ParseTemplate(file, contents string, known []string, required ...string) (*Template, error) {
	contents = strings.ReplaceAll(strings.TrimPrefix(contents, setting.ByteOrderMark), "\r\n", "\n")
	head, text, ok := strings.Cut(contents, "\n\n")
	subject, isSubject := strings.CutPrefix(head, "Subject: ")
	switch {
	case len(contents) > maxBody:
		return nil, fmt.Errorf("%s: longer than %d bytes", file, maxBody)
	case !utf8.ValidString(contents):
		return nil, fmt.Errorf("%s: not valid UTF-8", file)
	case !ok || !isSubject || strings.TrimSpace(subject) == "" || strings.ContainsFunc(subject, unicode.IsControl):
		return nil, fmt.Errorf("%s: must begin with a line such as \"Subject: Your new password\" and an empty line", file)
	}
	for _, p := range placeholder.FindAllString(contents, -1) {
		if !strings.HasSuffix(p, "}") || !slices.Contains(known, p[1:len(p)-1]) {
			return nil, fmt.Errorf("%s: unknown placeholder %.40s; use {%s}", file, p, strings.Join(known, "}, {"))
		}
	}
	for _, name := range required {
		if !strings.Contains(text, "{"+name+"}") {
			return nil, fmt.Errorf("%s: the text must contain {%s}", file, name)
		}
	}
	return &Template{subject: strings.TrimSpace(subject), text: text}, nil
}

// Render replaces each placeholder by its value. A control character in a value, such as
// a line break, becomes a space: a value cannot add lines. A placeholder in a value
// is not replaced. A placeholder without a value stays unchanged.
func (t *Template) Render(values map[string]string) (subject, text string) {
	var pairs []string
	for name, value := range values {
		value = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, value)
		pairs = append(pairs, "{"+name+"}", value)
	}
	r := strings.NewReplacer(pairs...)
	return r.Replace(t.subject), r.Replace(t.text)
}

// ReadTemplates returns the template of each kind, which is a key of required: the file
// KIND.txt in the directory dir if it exists, otherwise that in the directory builtInDir of
// builtIn. If dir is empty, all templates are built-in. The value of a kind is the list of its required
// placeholders. ReadTemplates refuses a file of an unknown kind in dir, because its name is
// probably mistyped. An error names the file.
func ReadTemplates[K ~string](builtIn fs.FS, builtInDir, dir string, known []string, required map[K][]string) (map[K]*Template, error) {
	if dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, setting.FileError(err)
		}
		for _, e := range entries {
			kind, isText := strings.CutSuffix(e.Name(), ".txt")
			if _, known := required[K(kind)]; isText && !known {
				return nil, fmt.Errorf("%.80q is not the text of a kind of mail; rename or remove it", e.Name())
			}
		}
	}
	templates := make(map[K]*Template)
	for kind, names := range required {
		file := string(kind) + ".txt"
		contents, err := fs.ReadFile(builtIn, path.Join(builtInDir, file))
		if err != nil {
			return nil, err
		}
		if dir != "" {
			own, err := os.ReadFile(filepath.Join(dir, file))
			if err == nil {
				contents = own
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s: %w", file, setting.FileError(err))
			}
		}
		if templates[kind], err = ParseTemplate(file, string(contents), known, names...); err != nil {
			return nil, err
		}
	}
	return templates, nil
}
