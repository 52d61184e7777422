package ganbauth_test

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// goBlocks returns the fenced Go code of a page.
func goBlocks(t *testing.T, page string) (blocks []string) {
	t.Helper()
	data, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
		blocks = append(blocks, m[1])
	}
	require.NotEmpty(t, blocks, page)
	return blocks
}

// The README's lines are the manual's, and compile as pasted, as do those of the pages.
func TestREADME(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	inDoc := regexp.MustCompile(`(?m)^//\t?`).ReplaceAllString(string(doc), "")
	require.Contains(t, inDoc, goBlocks(t, "README.md")[0])

	program := &strings.Builder{}
	program.WriteString(`package main

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

type _ struct{ *scs.SessionManager; *ganbtest.Server; *slog.Logger; stdlib *log.Logger; time.Time }

func main() {}
`)
	declared := regexp.MustCompile(`(?m)^(\w+(?:, \w+)*) :=`)
	for _, page := range []string{"README.md", "docs/migrating.md", "docs/production.md", "docs/security.md"} {
		for i, block := range goBlocks(t, page) {
			fmt.Fprintf(program, `
// %s
func _(mux *http.ServeMux, balance http.HandlerFunc, transfer, handler http.Handler, w http.ResponseWriter, server *http.Server,
	r *http.Request, api, addr, id, secret, salt, scope, redirectURI, code, attemptID string, newKey, oldKey []byte, err error,
	ctx context.Context, sessions *scs.SessionManager, opts ganbauth.Options, store ganbauth.TokenStore,
	userID func(context.Context) (string, error), row struct{ UserID, AccessToken, RefreshToken, Scope string },
`, page)
			if page != "README.md" || i > 0 {
				program.WriteString("bank *ganbauth.Kit, connector *ganbauth.Connector,\n")
			}
			program.WriteString(") { {\n" + block)
			for _, m := range declared.FindAllStringSubmatch(block, -1) {
				for name := range strings.SplitSeq(m[1], ", ") {
					program.WriteString("_ = " + name + "\n")
				}
			}
			program.WriteString("} }\n")
		}
	}
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program.String()), 0o600))
	out, err := exec.Command("go", "build", "-o", os.DevNull, file).CombinedOutput()
	require.NoError(t, err, string(out))

	kit, options := reflect.TypeFor[*ganbauth.Kit](), reflect.TypeFor[ganbauth.Options]()
	for page, text := range pages(t) {
		for _, m := range regexp.MustCompile("`bank\\.([A-Z]\\w+)").FindAllStringSubmatch(text, -1) {
			_, ok := kit.MethodByName(m[1])
			require.True(t, ok, "%s names Kit.%s", page, m[1])
		}
		for _, m := range regexp.MustCompile("`(?:Options|opts)\\.(\\w+)").FindAllStringSubmatch(text, -1) {
			_, ok := options.FieldByName(m[1])
			require.True(t, ok, "%s names Options.%s", page, m[1])
		}
	}
}

// pages returns the pages about the root package, without line breaks inside their
// sentences.
func pages(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"README*.md", "docs/*.md", "docs/ja/*.md"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, name := range names {
			data, err := os.ReadFile(name)
			require.NoError(t, err)
			pages[name] = strings.Join(strings.Fields(string(data)), " ")
		}
	}
	return pages
}

// The quick start's program, with the quick start's certificate and conf.json, connects
// accounts at the bank in a box, and its troubles show as the page says.
func TestQuickStart(t *testing.T) {
	page, err := os.ReadFile("docs/quickstart.md")
	require.NoError(t, err)
	block := func(language string) string {
		return regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(string(page))[1]
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(block("go")), 0o600))
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bank"), filepath.Join(dir, "main.go")).CombinedOutput()
	require.NoError(t, err, string(out))
	certify := exec.Command("sh", "-c", regexp.MustCompile(`(?m)^go run "\$\(go env GOROOT.*$`).FindString(block("sh")))
	certify.Dir = dir
	out, err = certify.CombinedOutput()
	require.NoError(t, err, string(out))
	cert, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(cert))

	for _, c := range []struct {
		name           string
		secret, issuer string // besides the box's
		page, log      string
	}{
		{name: "connected", page: `"accounts":`, log: "login_succeeded"},
		{name: "wrong secret", secret: "another", page: "Something went wrong on our side", log: "class=invalid_client"},
		{name: "wrong issuer", issuer: "https://api.gmo-aozora.com", page: "could not be verified", log: "class=invalid_id_token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := fmt.Sprint("localhost:", testenv.FreePort(t))
			redirectURI := "https://" + addr + "/bank/callback"
			box := ganbtest.NewServer(ganbtest.Options{RedirectURI: redirectURI})
			defer box.Close()
			conf := box.Config()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "conf.json"), []byte(strings.NewReplacer(
				"https://api.gmo-aozora.com/ganb/api/auth/v1", conf.AuthBaseURL,
				"https://api.gmo-aozora.com/", cmp.Or(c.issuer, conf.JWTIssuer),
			).Replace(block("json"))), 0o600))
			program := exec.Command(filepath.Join(dir, "bank"))
			program.Dir = dir
			program.Env = append(os.Environ(), "ADDR="+addr, "GANB_REDIRECT_URI="+redirectURI, "GANB_API="+box.APIBase(),
				"GANB_CLIENT_ID="+box.ClientID, "GANB_CLIENT_SECRET="+cmp.Or(c.secret, box.ClientSecret))
			log := &lockedBuffer{}
			program.Stderr = log
			require.NoError(t, program.Start())
			stop := sync.OnceFunc(func() { _ = program.Process.Kill(); _ = program.Wait() })
			defer stop()

			jar, err := cookiejar.New(nil)
			require.NoError(t, err)
			browser := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
			defer browser.CloseIdleConnections()
			var shown string
			require.Eventually(t, func() bool {
				shown = visit(browser, "https://"+addr+"/accounts")
				return !strings.Contains(shown, "connection refused")
			}, 10*time.Second, 20*time.Millisecond, log.String())
			require.Contains(t, shown, c.page)
			stop() // the log is whole
			require.Contains(t, log.String(), c.log)
		})
	}
}

// Each Japanese page has the English page's code, and a heading, a row and an item for
// each of its, with the row's numbers and tests. Comments in the code and words in a
// diagram are in the page's language.
func TestTranslations(t *testing.T) {
	part := regexp.MustCompile("(?ms)^```.*?^```$|^#+ |^\\|[^\n]*|^- |^\\d\\. ")
	shape := func(page string) (parts []string) {
		data, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, p := range part.FindAllString(string(data), -1) {
			switch {
			case strings.HasPrefix(p, "```go"), strings.HasPrefix(p, "```nginx"):
				p = withoutComments(p)
			case strings.HasPrefix(p, "```mermaid"):
				p = "a diagram"
			case strings.HasPrefix(p, "|"):
				p = rowShape(p)
			}
			parts = append(parts, p)
		}
		return parts
	}
	japanese, err := filepath.Glob("docs/ja/*.md")
	require.NoError(t, err)
	require.Len(t, japanese, 6)
	for _, page := range append(japanese, "README.ja.md") {
		english := strings.NewReplacer("/ja/", "/", ".ja.", ".").Replace(page)
		require.Equal(t, shape(english), shape(page), page)
	}
}

var (
	rowNumber = regexp.MustCompile(`\d+(?:,\d{3})*(?:\.\d+)?`)
	rowTest   = regexp.MustCompile("`[^`]*\\b(?:Test|Fuzz)[A-Z][^`]*`")
)

// rowShape is what a row of a table has in every language: its columns and tests, and the
// numbers of what was measured, in their order.
func rowShape(row string) string {
	cells := strings.Split(row, "|")
	shape := []string{fmt.Sprint(len(cells), " columns")}
	if command := cells[len(cells)-2]; strings.Contains(command, "go test ") {
		shape = append(shape, rowNumber.FindAllString(cells[len(cells)-3], -1)...)
	}
	return strings.Join(append(shape, rowTest.FindAllString(row, -1)...), " ")
}

// Each snippet of the recipes is a test's, line by line. Comments are in the page's
// language.
func TestRecipesPage(t *testing.T) {
	indent := regexp.MustCompile(`(?m)^(.)`)
	for page, of := range map[string]func(string) string{
		"docs/recipes.md":    func(code string) string { return code },
		"docs/ja/recipes.md": withoutComments,
	} {
		source := ""
		for _, name := range []string{"recipes_test.go", "e2e/recipes_test.go", "recipes/recipes_test.go", "recipes/testdata/clients/clients_test.go"} {
			data, err := os.ReadFile(name)
			require.NoError(t, err)
			source += of(string(data))
		}
		data, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile("(?s)```(?:go|js|nginx)\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
			block := of(m[1])
			require.True(t, strings.Contains(source, block) || strings.Contains(source, indent.ReplaceAllString(block, "\t$1")),
				"%s: %s", page, block)
		}
	}
}

func withoutComments(code string) string {
	return regexp.MustCompile(`(?m)[ \t]*(//|#) .*$`).ReplaceAllString(code, "")
}

// The numbers in the documents are the code's.
func TestI15Numbers(t *testing.T) {
	text := pages(t)
	for _, name := range []string{"connector.go", "errorpage.go", "handlers.go", "kit.go", "login.go", "middleware.go", "options.go", "store.go"} {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		text[name] = strings.Join(strings.Fields(regexp.MustCompile(`(?m)^\s*//`).ReplaceAllString(string(data), "")), " ")
	}
	inWords := map[int]string{3: "three", 4: "quarter", 5: "five", 10: "ten"}
	n := func(d time.Duration) string { return fmt.Sprint(d.Seconds()) }
	word := func(d time.Duration) string { return inWords[int(d.Seconds())] }
	minutes := func(d time.Duration) string { return inWords[int(d.Minutes())] }
	require.Equal(t, 4, ganbauth.LeewayShare)
	require.Equal(t, 1024, ganbauth.MaxKey)
	require.Equal(t, 1<<20, ganbauth.MaxBody)
	require.Equal(t, time.Minute, ganbauth.MaxProbePause)
	require.Equal(t, 10*time.Minute, ganbauth.AttemptLifetime)
	require.Equal(t, time.Second/10, ganbauth.Grace)

	leeway, share, patience, most := n(ganbauth.DefaultLeeway), inWords[ganbauth.LeewayShare], n(ganbauth.Patience), n(ganbauth.MaxWait)
	for page, sentences := range map[string][]string{
		"README.md": {
			"within " + leeway + " s, or the last " + share + " of a short-lived token",
			"waits " + patience + " s at most, any other " + most + " s",
			"at intervals that grow to one minute",
		},
		"README.ja.md": {
			"期限の" + leeway + "秒前から。短命なトークンでは、残りが有効期間の4分の1を切ってから",
			"最長" + patience + "秒、それ以外は最長" + most + "秒待ちます",
			"間隔は最大1分まで延びます",
		},
		"docs/production.md": {
			"| " + leeway + " s, at most a " + share + " of its life |",
			"is still valid waits for a refresh | at most " + patience + " s |",
			"waits for a refresh or a code exchange | at most " + most + " s |",
			"a token request to the bank | at most " + n(ganbauth.RequestTimeout) + " s |",
			"an API request of `bank.Client` | at most " + n(ganbauth.APITimeout) + " s",
			"without asking the store again | " + n(ganbauth.LookAgain) + " s |",
			"one call of the store | at most " + n(ganbauth.CallTimeout) + " s |",
			"| 503 after " + n(ganbauth.LogoutTimeout) + " s |",
			fmt.Sprintf("`Observe` or the Logger | at most %d ms |", ganbauth.Grace.Milliseconds()),
			"to the callback | at most " + minutes(ganbauth.AttemptLifetime) + " minutes |",
			"at intervals that grow to " + n(ganbauth.MaxProbePause) + " s",
			fmt.Sprintf("any string of up to %d bytes", ganbauth.MaxConnection),
			"at most 1,024 bytes",
			fmt.Sprintf("or %.0f hours before it expires", ganbauth.MaxLead.Hours()),
			"agree to within " + n(ganbauth.MaxClockSkew) + " s",
		},
		"docs/ja/production.md": {
			"期限の" + leeway + "秒前。ただし、有効期間の4分の1まで",
			"更新を待つ時間 | 最長" + patience + "秒 |",
			"更新やコードの交換を待つ時間 | 最長" + most + "秒 |",
			"トークンのリクエスト | 最長" + n(ganbauth.RequestTimeout) + "秒 |",
			"APIのリクエスト | 最長" + n(ganbauth.APITimeout) + "秒",
			"トークンを使う時間 | " + n(ganbauth.LookAgain) + "秒 |",
			"ストアの呼び出し1回 | 最長" + n(ganbauth.CallTimeout) + "秒 |",
			"| " + n(ganbauth.LogoutTimeout) + "秒で503 |",
			fmt.Sprintf("最長%dミリ秒", ganbauth.Grace.Milliseconds()),
			fmt.Sprintf("コールバックまで | 最長%.0f分", ganbauth.AttemptLifetime.Minutes()),
			"最大" + n(ganbauth.MaxProbePause) + "秒まで延びます",
			fmt.Sprintf("名前は%dバイト以内", ganbauth.MaxConnection),
			"1,024バイト以内",
			fmt.Sprintf("期限の%.0f時間前", ganbauth.MaxLead.Hours()),
			n(ganbauth.MaxClockSkew) + "秒以内",
		},
		"docs/migrating.md":   {"| " + n(ganbauth.RequestTimeout) + " s | `TestDeadline`", "| 1 MiB | `TestHostileNetwork`"},
		"docs/conformance.md": {"refused: " + minutes(ganbauth.MaxIDTokenAge) + " minutes at most"},
		"docs/security.md":    {"`iat` and `nbf` with " + n(ganbauth.MaxClockSkew) + " s"},
		"connector.go":        {"Every request ends after " + n(ganbauth.RequestTimeout) + " seconds"},
		"errorpage.go":        {"You started it more than " + minutes(ganbauth.AttemptLifetime) + " minutes ago", "10分以上"},
		"handlers.go":         {"if the store does not answer for " + word(ganbauth.LogoutTimeout) + " seconds"},
		"kit.go": {
			"trusts the request's token for " + word(ganbauth.LookAgain) + " seconds",
			"after " + n(ganbauth.APITimeout) + " seconds in all",
			"It tries for " + word(ganbauth.LogoutTimeout) + " seconds at most",
		},
		"middleware.go": {"connecting took more than " + minutes(ganbauth.AttemptLifetime) + " minutes"},
		"options.go": {
			fmt.Sprintf("at most %d bytes of any content", ganbauth.MaxConnection),
			"at most 1,024 bytes in all",
			"at most a " + share + " of the token's life. Default: " + leeway + " seconds",
			"for a tenth of a second at most",
		},
		"store.go": {"at most 1,024 bytes of any content"},
	} {
		for _, sentence := range sentences {
			require.True(t, strings.Contains(text[page], sentence), "%s does not say %q", page, sentence)
		}
	}

	for status, err := range map[int]error{
		http.StatusUnauthorized:       ganbauth.ErrLoginRequired,
		http.StatusBadRequest:         ganbauth.ErrInvalidState,
		http.StatusServiceUnavailable: ganbauth.ErrUnavailable,
	} {
		require.Equal(t, status, ganbauth.StatusCode(err))
		require.Contains(t, text["README.md"], fmt.Sprintf("| %d", status))
		require.Contains(t, text["README.ja.md"], fmt.Sprint(status))
	}
}

// anchors returns the fragments by which a page's headings are linked to.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	data, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(data), -1) {
		text := regexp.MustCompile(`[^\p{L}\p{M}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(text, " ", "-"))
	}
	return all
}

// What the pages link to, and the tests that they name, are there.
func TestDocs(t *testing.T) {
	source := &strings.Builder{}
	var pages []string
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			pages = append(pages, path)
		case filepath.Ext(path) == ".go":
			data, err := os.ReadFile(path)
			source.Write(data)
			return err
		}
		return nil
	}))
	require.NotEmpty(t, pages)
	test := regexp.MustCompile(`\b((?:Test|Fuzz|Example|Benchmark)[A-Z_]\w*)((?:/[\w.,-]+)*)`)
	link := regexp.MustCompile(`\]\(([^)#]*)#?([^)]*)\)`)
	for _, page := range pages {
		data, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range test.FindAllStringSubmatch(string(data), -1) {
			require.True(t, strings.Contains(source.String(), "func "+m[1]+"("), "%s names %s", page, m[0])
			for _, sub := range strings.FieldsFunc(m[2], func(r rune) bool { return r == '/' }) {
				spaced := strings.ReplaceAll(sub, "_", " ") // as it was, before package testing wrote it
				require.True(t, strings.Contains(source.String(), spaced+`"`) || strings.Contains(source.String(), sub+`"`),
					"%s names %s", page, m[0])
			}
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			_, err := os.Stat(target)
			require.NoError(t, err, page)
			if m[2] != "" {
				require.Contains(t, anchors(t, target), m[2], "%s links to %s", page, target)
			}
		}
	}
}

// H5: sentences that were not so are in no document and in no comment of an exported name.
func TestH5SentencesThatWereNotSo(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, dir := range []string{".", "docs"} {
		pages, err := filepath.Glob(filepath.Join(dir, "*.md"))
		require.NoError(t, err)
		files = append(files, pages...)
	}
	require.Greater(t, len(files), 20)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		words := strings.Join(strings.Fields(strings.ReplaceAll(string(text), "//", " ")), " ")
		for _, sentence := range []string{
			"Without a Locker no user is logged out", "once a minute at most", "only the bank's word ends a connection",
			"one of few words", "A POST without a token gets problem", "nothing of the request is shown",
		} {
			require.NotContains(t, words, sentence, file)
		}
	}
}
