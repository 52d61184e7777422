package storetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// README tests that the Go code of the store's README compiles. Imports are the paths
// that it needs besides the standard library's and ganbauth's. Variables are "name type".
func README(t *testing.T, imports []string, variables ...string) {
	t.Helper()
	page, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	require.NotEmpty(t, blocks)
	program := &strings.Builder{}
	program.WriteString("package main\n\nimport (\n")
	for _, path := range append([]string{"context", "net/http", "time", "github.com/ganbauth/ganbauth"}, imports...) {
		fmt.Fprintf(program, "\t%q\n", path)
	}
	program.WriteString(")\n\nfunc main() {}\n\nvar _ = time.Hour\n")
	declared := regexp.MustCompile(`(?m)^(\w+(?:, \w+)*) :=`)
	for _, block := range blocks {
		fmt.Fprintf(program, "\nfunc _(ctx context.Context, connector *ganbauth.Connector, userID func(context.Context) (string, error), err error, %s) { {\n",
			strings.Join(variables, ", "))
		program.WriteString(block[1])
		for _, m := range declared.FindAllStringSubmatch(block[1], -1) {
			for name := range strings.SplitSeq(m[1], ", ") {
				program.WriteString("_ = " + name + "\n")
			}
		}
		program.WriteString("} }\n")
	}
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program.String()), 0o600))
	out, err := exec.Command("go", "build", "-o", os.DevNull, file).CombinedOutput()
	require.NoError(t, err, string(out)+program.String())
}
