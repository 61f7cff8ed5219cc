package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// Maximum duration of a guest's customization script, and of a client's command.
	runTimeout = 30 * time.Second
	// The script works in the folder that this variable names.
	rootVariable = "FLEETING_ROOT"
	// The users of a fresh guest.
	guestPasswd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)

// guest is the simulator's answer about a guest.
type guest struct {
	OS           string `json:"os"`
	Customized   bool   `json:"customized"`
	Script       string `json:"script"`
	Password     string `json:"password"`
	ComputerName string `json:"computer_name"`
}

// sshServer is the SSH server of all guests. It identifies a guest by the source address of a connection.
type sshServer struct {
	control  string
	listener net.Listener
	config   ssh.ServerConfig
	wait     sync.WaitGroup

	mu      sync.Mutex
	open    map[net.Conn]bool
	refused []string
}

// newSSHServer listens on a free port of 127.0.0.1. Connections wait for Serve.
func newSSHServer() (*sshServer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	hostKey, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sshServer{listener: listener, open: map[net.Conn]bool{}}
	s.config.PasswordCallback = func(conn ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
		return nil, s.note(conn, "password", s.checkPassword(conn, string(password)))
	}
	s.config.PublicKeyCallback = func(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		return nil, s.note(conn, "key", s.checkKey(conn, key))
	}
	s.config.AddHostKey(hostKey)
	return s, nil
}

// Serve serves the guests of the control port at this URL.
func (s *sshServer) Serve(control string) {
	s.control = control
	s.wait.Go(s.serve)
}

// Addr returns its address.
func (s *sshServer) Addr() string { return s.listener.Addr().String() }

// Refused returns the refused logins and the reasons.
func (s *sshServer) Refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refused)
}

// Close closes all connections.
func (s *sshServer) Close() {
	s.listener.Close()
	s.mu.Lock()
	for conn := range s.open {
		conn.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.wait.Wait()
}

func (s *sshServer) note(conn ssh.ConnMetadata, how string, err error) error {
	if err != nil {
		s.mu.Lock()
		s.refused = append(s.refused, fmt.Sprintf("%s by %s from %s: %v", conn.User(), how, conn.RemoteAddr(), err))
		s.mu.Unlock()
	}
	return err
}

func (s *sshServer) serve() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.open == nil {
			conn.Close()
		} else {
			s.open[conn] = true
			s.wait.Go(func() {
				s.connection(conn)
				conn.Close()
				s.mu.Lock()
				delete(s.open, conn)
				s.mu.Unlock()
			})
		}
		s.mu.Unlock()
	}
}

func (s *sshServer) connection(conn net.Conn) {
	client, channels, requests, err := ssh.NewServerConn(conn, &s.config)
	if err != nil {
		return // A probe, or a refused login, which is recorded.
	}
	defer client.Close()
	s.wait.Go(func() { ssh.DiscardRequests(requests) })
	for channel := range channels {
		if channel.ChannelType() != "session" {
			channel.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		session, requests, err := channel.Accept()
		if err != nil {
			return
		}
		s.wait.Go(func() { serveSession(session, requests) })
	}
}

// serveSession runs the one command of a session.
func serveSession(session ssh.Channel, requests <-chan *ssh.Request) {
	defer session.Close()
	for request := range requests {
		var command struct{ Line string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &command) != nil {
			request.Reply(false, nil)
			continue
		}
		request.Reply(true, nil)
		ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
		shell := exec.CommandContext(ctx, "sh", "-c", command.Line)
		shell.Stdout, shell.Stderr = session, session.Stderr()
		status := struct{ Status uint32 }{}
		if err := shell.Run(); err != nil {
			status.Status = 255
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() >= 0 {
				status.Status = uint32(exit.ExitCode())
			}
		}
		cancel()
		session.SendRequest("exit-status", false, ssh.Marshal(&status))
		return
	}
}

// checkPassword accepts the administrator with the password from VCD, and users whose password the script sets.
func (s *sshServer) checkPassword(conn ssh.ConnMetadata, password string) error {
	guest, err := s.guest(conn)
	if err != nil {
		return err
	}
	if conn.User() == "root" {
		if guest.Password == "" || guest.Password != password {
			return errors.New("not the password from VCD")
		}
		return nil
	}
	root, err := customize(guest)
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	commands, err := os.ReadFile(filepath.Join(root, "commands"))
	if err != nil {
		return err
	}
	if !strings.Contains(string(commands), "chpasswd\n"+conn.User()+":"+password+"\n") {
		return errors.New("not the password that the script sets")
	}
	return nil
}

// checkKey accepts a key that the customization script wrote to the file that sshd reads, with modes that sshd
// accepts.
func (s *sshServer) checkKey(conn ssh.ConnMetadata, key ssh.PublicKey) error {
	guest, err := s.guest(conn)
	if err != nil {
		return err
	}
	root, err := customize(guest)
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	home := filepath.Join(root, "home", filepath.Base(conn.User()))
	if conn.User() == "root" {
		home = filepath.Join(root, "root")
	}
	folder := filepath.Join(home, ".ssh")
	file := filepath.Join(folder, "authorized_keys")
	for path, mode := range map[string]os.FileMode{folder: 0o700, file: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Mode().Perm() != mode {
			return fmt.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
	}
	lines, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for len(bytes.TrimSpace(lines)) > 0 {
		found, _, _, rest, err := ssh.ParseAuthorizedKey(lines)
		if err != nil {
			return err
		}
		if bytes.Equal(found.Marshal(), key.Marshal()) {
			return nil
		}
		lines = rest
	}
	return errors.New("the key is not in authorized_keys")
}

// guest reads the guest at the client's address from the simulator.
func (s *sshServer) guest(conn ssh.ConnMetadata) (guest, error) {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return guest{}, err
	}
	var found guest
	if err := getJSON(s.control+"/guest/"+host, &found); err != nil {
		return guest{}, err
	}
	if !found.Customized {
		return guest{}, errors.New("the guest is not customized")
	}
	return found, nil
}

// customize runs the guest's script as VCD does, before and after its own part, in a new folder that replaces the
// guest's disk.
func customize(guest guest) (string, error) {
	root, err := os.MkdirTemp("", "vcd-guest-")
	if err != nil {
		return "", err
	}
	run := func() error {
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte(guestPasswd), 0o644); err != nil {
			return err
		}
		// A guest without a script gets an empty one.
		script := filepath.Join(root, "customize.sh")
		if err := os.WriteFile(script, []byte(guest.Script), 0o755); err != nil {
			return err
		}
		for _, phase := range []string{"precustomization", "postcustomization"} {
			ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
			command := exec.CommandContext(ctx, "sh", script, phase)
			command.Dir = root
			command.Env = append(os.Environ(), rootVariable+"="+root)
			said, err := command.CombinedOutput()
			cancel()
			if err != nil {
				return fmt.Errorf("customization script, %s: %w: %s", phase, err, said)
			}
		}
		return nil
	}
	if err := run(); err != nil {
		os.RemoveAll(root)
		return "", err
	}
	return root, nil
}

// getJSON reads an answer of the control port.
func getJSON(url string, into any) error {
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return json.Unmarshal(body, into)
}

// postJSON sends a JSON document, and ignores the body of the answer.
func postJSON(url string, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}
