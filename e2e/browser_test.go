// Package e2e tries ganbauth against what others wrote.
package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// newBrowser starts a headless Chromium with no history.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	path := testenv.Needs(t, "chromium", "chromium-browser", "google-chrome")
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("ignore-certificate-errors", true), chromedp.WindowSize(1280, 900))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// exampleBinary builds the example.
var exampleBinary = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(folder, "example")
	build := exec.Command("go", "build", "-o", bin, "./_example")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return bin, nil
})

// folder is the tests' own.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "e2e"); err != nil {
		panic(err)
	}
	status := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(status)
}

func exampleCommand(t *testing.T, ctx context.Context, args ...string) *exec.Cmd {
	t.Helper()
	bin, err := exampleBinary()
	require.NoError(t, err)
	return exec.CommandContext(ctx, bin, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
}

// startExample runs the example, and returns the one URL that it prints.
func startExample(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exampleCommand(t, ctx, args...)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	url := regexp.MustCompile(`http://\S+`).FindString(line)
	require.NotEmpty(t, url, line)
	return strings.TrimSuffix(url, "/")
}

// see waits until the page's text contains want, and takes a picture where SCREENSHOTS
// names a folder.
func see(t *testing.T, ctx context.Context, want, name string) string {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	var text string
	for {
		// By script, as a query by selector waits for a page that may be gone by then.
		var err error
		text, err = chromedp.Run(ctx, chromedp.Evaluate[string](`document.body ? document.body.innerText : ""`))
		if err == nil && strings.Contains(text, want) {
			break
		}
		if time.Now().After(deadline) {
			require.NoError(t, err)
			require.Contains(t, text, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if folder := os.Getenv("SCREENSHOTS"); folder != "" && name != "" {
		png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, name+".png"), png, 0o600))
	}
	return text
}

func click(t *testing.T, ctx context.Context, label string) {
	t.Helper()
	xpath := fmt.Sprintf(`//*[self::a or self::button][normalize-space()="%s"]`, label)
	require.NoError(t, chromedp.Do(ctx, chromedp.Click(xpath)))
}

func open(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(url)))
}

// Several connections, errors, and a bank that ends a connection, as a user sees them.
func TestExampleInBrowser(t *testing.T) {
	ctx := newBrowser(t)
	app := startExample(t)

	open(t, ctx, app)
	see(t, ctx, "Connect a bank account", "home")
	click(t, ctx, "Connect a bank account")
	see(t, ctx, consent, "consent")

	click(t, ctx, "Deny")
	see(t, ctx, "Not connected", "denied")
	click(t, ctx, "Connect again")
	see(t, ctx, consent, "")

	click(t, ctx, "Approve")
	text := see(t, ctx, behindTheScenes, "accounts")
	require.Regexp(t, `¥[\d,]*\d,\d{3}`, text, "balances")
	require.Contains(t, text, "private:account")
	require.Contains(t, text, "Refreshes so far: 0")
	seconds, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("#countdown")))
	require.NoError(t, err)
	require.Regexp(t, `^1[12]\d$`, seconds)
	first := location(t, ctx)

	click(t, ctx, "Expire the token")
	require.Contains(t, see(t, ctx, "Refreshes so far: 1", "refreshed"), "Household")

	click(t, ctx, "Allow transfers, too")
	require.Contains(t, see(t, ctx, consent, "incremental"), "private:transfer")
	click(t, ctx, "Approve")
	require.NotContains(t, see(t, ctx, behindTheScenes, ""), "Allow transfers, too")

	// The callback is in the history: going back to it must not end in an error.
	require.NoError(t, chromedp.Do(ctx, chromedp.NavigateBack()))
	open(t, ctx, first)
	see(t, ctx, behindTheScenes, "")

	click(t, ctx, "Fail once")
	see(t, ctx, "The bank is not available right now", "failed")
	click(t, ctx, "Try again")
	see(t, ctx, behindTheScenes, "")

	// Another connection has accounts of its own, and ends alone.
	click(t, ctx, "All accounts")
	see(t, ctx, "Connect another account", "connections")
	require.NoError(t, chromedp.Do(ctx, chromedp.SetValue("#name", "Café & Co. <1>")))
	click(t, ctx, "Connect a bank account")
	see(t, ctx, consent, "")
	click(t, ctx, "Approve")
	require.Contains(t, see(t, ctx, behindTheScenes, ""), "Café & Co. <1>")
	click(t, ctx, "Revoke the connection")
	// A login that has just ended and left no token is not begun again unasked.
	see(t, ctx, "Connect your bank account", "page")
	click(t, ctx, "Connect")
	see(t, ctx, consent, "")
	click(t, ctx, "Approve")
	see(t, ctx, behindTheScenes, "")
	click(t, ctx, "Disconnect")
	require.NotContains(t, see(t, ctx, "Household", ""), "Café")

	click(t, ctx, "Disconnect")
	require.NotContains(t, see(t, ctx, "You can connect several", ""), "Household")
	open(t, ctx, first)
	see(t, ctx, "Connect a bank account", "")
}

// behindTheScenes is on the page with the accounts of a connection.
const behindTheScenes = "Behind the scenes"

// connectExample begins to connect an account.
func connectExample(t *testing.T, ctx context.Context, app string) {
	t.Helper()
	open(t, ctx, app)
	see(t, ctx, "Connect a bank account", "")
	click(t, ctx, "Connect a bank account")
}

// A token that is about to end is refreshed while the user looks on.
func TestExampleRefreshesByItself(t *testing.T) {
	ctx := newBrowser(t)
	connectExample(t, ctx, startExample(t, "-lifetime", "2s"))
	click(t, ctx, "Approve")
	see(t, ctx, behindTheScenes, "")
	deadline := time.Now().Add(20 * time.Second)
	for {
		click(t, ctx, "Show again")
		if text := see(t, ctx, behindTheScenes, ""); !strings.Contains(text, "Refreshes so far: 0") {
			break
		}
		require.False(t, time.Now().After(deadline))
		time.Sleep(100 * time.Millisecond)
	}
}

func TestExampleByKeyboard(t *testing.T) {
	ctx := newBrowser(t)
	open(t, ctx, startExample(t))
	for _, step := range []struct{ page, label string }{
		{"Connect a bank account", "Connect a bank account"},
		{consent, "Deny"},
		{"Not connected", "Connect again"},
		{consent, "Approve"},
		{behindTheScenes, "Expire the token"},
		{"Refreshes so far: 1", "Disconnect"},
	} {
		see(t, ctx, step.page, "")
		press(t, ctx, step.label)
	}
	see(t, ctx, "Connect a bank account", "")
}

// On a phone and on a desktop, in both languages, no page is wider than the window.
func TestExampleFits(t *testing.T) {
	for _, width := range []int64{390, 1280} {
		for _, language := range []string{"ja", "en"} {
			name := fmt.Sprint(language, "-", width)
			t.Run(name, func(t *testing.T) {
				ctx := newBrowser(t)
				require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(width, 800)))
				_, err := chromedp.Call(ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{
					Headers: network.Headers{"Accept-Language": language},
				})
				require.NoError(t, err)
				say := func(ja, en string) string {
					if language == "ja" {
						return ja
					}
					return en
				}
				fits := func(want, page string) {
					t.Helper()
					see(t, ctx, want, name+"-"+page)
					require.LessOrEqual(t, evaluate[int64](t, ctx, "document.documentElement.scrollWidth"), width, page)
				}
				connect := say("口座を連携する", "Connect a bank account")
				app := startExample(t)
				open(t, ctx, app)
				fits(connect, "home")
				click(t, ctx, connect)
				fits(say("許可する内容を選んでください", consent), "consent")
				click(t, ctx, say("許可しない", "Deny"))
				fits(say("連携が許可されませんでした", "Not connected"), "denied")
				callback := location(t, ctx)
				open(t, ctx, callback)
				fits(say("連携を完了できません", "We couldn't finish connecting your account"), "over")
				open(t, ctx, app)
				fits(say("連携していません", "Not connected"), "not-connected")
				click(t, ctx, say("連携する", "Connect"))
				see(t, ctx, say("許可する内容を選んでください", consent), "")
				click(t, ctx, say("許可する", "Approve"))
				fits(say("舞台裏", behindTheScenes), "accounts")
				click(t, ctx, say("口座の一覧", "All accounts"))
				fits(say("ほかの口座も連携する", "Connect another account"), "connections")
				click(t, ctx, say("口座を見る", "Show accounts"))
				see(t, ctx, say("舞台裏", behindTheScenes), "")
				click(t, ctx, say("エラーを1回返す", "Fail once"))
				fits(say("ただいま銀行と通信できません", "The bank is not available right now"), "trouble")
				click(t, ctx, say("もう一度試す", "Try again"))
				see(t, ctx, say("舞台裏", behindTheScenes), "")
				click(t, ctx, say("銀行側で連携を取り消す", "Revoke the connection"))
				fits(say("銀行口座との連携が必要です", "Connect your bank account"), "ended")
			})
		}
	}
}

// The same binary against a bank that is not in its box: conf.json, and the client from
// the environment.
func TestExampleWithConfig(t *testing.T) {
	ctx := newBrowser(t)
	bank := ganbtest.NewServer(ganbtest.Options{AuthMethod: ganbauth.AuthPost})
	t.Cleanup(bank.Close)
	t.Setenv("GANB_CLIENT_ID", bank.ClientID)
	t.Setenv("GANB_CLIENT_SECRET", bank.ClientSecret)
	conf := filepath.Join(t.TempDir(), "conf.json")
	cfg := bank.Config()
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil,
		`{"SALT":"s3cret","AUTH_BASE_URL":%q,"AUTH_PATH":"/authorization","TOKEN_PATH":"/token","JWT_ISSUER":%q}`,
		cfg.AuthBaseURL, cfg.JWTIssuer), 0o600))
	connectExample(t, ctx, startExample(t, "-conf", conf, "-auth-method", "post", "-accounts", "corporation"))
	require.NotContains(t, see(t, ctx, behindTheScenes, ""), "Revoke")
}

// A setting that is missing or wrong gives one clear line.
func TestExampleSettings(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "conf.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good := `{"SALT":"s3cret","AUTH_BASE_URL":"https://bank.test","JWT_ISSUER":"i"}`
	for name, test := range map[string]struct {
		id   string
		args []string
		want string
	}{
		"no such file":     {"id", []string{"-conf", "/nowhere/conf.json"}, "no such file"},
		"not JSON":         {"id", []string{"-conf", write("{")}, "malformed JSON"},
		"no client":        {"", []string{"-conf", write(good)}, "GANB_CLIENT_ID"},
		"no salt":          {"id", []string{"-conf", write(`{"AUTH_BASE_URL":"https://bank.test"}`)}, "Salt is missing"},
		"http":             {"id", []string{"-conf", write(`{"SALT":"s3cret","AUTH_BASE_URL":"http://bank.test"}`)}, "must be https"},
		"redirect URI":     {"id", []string{"-conf", write(good), "-redirect-uri", "http://app.example/"}, "RedirectURI must be https"},
		"method":           {"id", []string{"-auth-method", "both"}, "basic or post"},
		"a flag too many":  {"id", []string{"-x"}, "flag provided but not defined"},
		"an address taken": {"id", []string{"-addr", "256.0.0.1:1"}, "-addr"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GANB_CLIENT_ID", test.id)
			t.Setenv("GANB_CLIENT_SECRET", "S3CRET")
			cmd := exampleCommand(t, t.Context(), test.args...)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			require.Error(t, cmd.Run())
			lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
			last := lines[len(lines)-1]
			require.True(t, strings.HasPrefix(last, "example: "), last)
			require.Contains(t, last, test.want)
			if name != "a flag too many" { // which shows the usage, too
				require.Len(t, lines, 1)
			}
			require.NotContains(t, strings.ToLower(stderr.String()), "s3cret")
			require.NotContains(t, stderr.String(), "goroutine")
		})
	}
}
