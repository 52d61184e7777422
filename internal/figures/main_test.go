package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// The figures of a page go to the translated page, and its words stay.
func TestCarry(t *testing.T) {
	dir := t.TempDir()
	page, translated := filepath.Join(dir, "page.md"), filepath.Join(dir, "ja", "page.md")
	require.NoError(t, os.Mkdir(filepath.Dir(translated), 0o700))
	write := func(name, text string) { require.NoError(t, os.WriteFile(name, []byte(text), 0o600)) }
	write(page, "Measured on 2026-11-25: a machine.\n"+
		"| 5 cases | 1,200 of 3 served after 1m0.5s, at 2 s | `go test -run TestA .` |\n| 7 | 8 | 9 |\n")
	write(translated, "測定環境：昨日\n| 5件 | 0件／0件、0ミリ秒後（0秒） | `go test -run TestA .` |\n| 七 | 八 | 九 |\n")
	require.NoError(t, figures(translated, regexp.MustCompile("")))
	got, err := os.ReadFile(translated)
	require.NoError(t, err)
	require.Equal(t, "測定環境：2026-11-25: a machine\n"+
		"| 5件 | 1,200件／3件、1分0.5秒後（2秒） | `go test -run TestA .` |\n| 七 | 八 | 九 |\n", string(got))

	write(translated, "| 5件 | 1件 | `go test -run TestA .` |\n")
	require.ErrorContains(t, carry(page, translated), "has 1 figures, not 4")
}
