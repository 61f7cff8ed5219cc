package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// programs are OpenSSH's server and the programs that the customization script needs.
var programs = []string{
	"bash", "cat", "chmod", "chown", "chpasswd", "getent", "grep", "head", "id", "mkdir", "mktemp", "rm", "sh", "sshd", "sudo",
	"tail", "touch", "true", "useradd", "usermod",
}

// etc is the part of Debian's /etc that logins need. Like cloud images, the image accepts no passwords.
var etc = map[string]string{
	"passwd": "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n" +
		"old:x:1500:1500::/srv/old:/bin/sh\n",
	"group":                           "root:x:0:\nnogroup:x:65534:\nold:x:1500:\ndocker:x:999:\n",
	"shadow":                          "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nold:*:19000:0:99999:7:::\n",
	"gshadow":                         "root:*::\nnogroup:*::\nold:!::\ndocker:!::\n",
	"login.defs":                      "UID_MIN 1000\nGID_MIN 1000\nENCRYPT_METHOD SHA512\nUSERGROUPS_ENAB yes\n",
	"nsswitch.conf":                   "passwd: files\ngroup: files\nshadow: files\n",
	"default/locale":                  "",
	"environment":                     "",
	"sudoers":                         "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
	"sudoers.d/README":                "",
	"ssh/sshd_config":                 "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nKbdInteractiveAuthentication no\nPrintMotd no\n",
	"ssh/sshd_config.d/60-image.conf": "PasswordAuthentication no\n",
}

// realGuests serves each of the simulator's guests with its own OpenSSH server in its own root folder, in which the
// guest's customization script has run, as VCD runs it. Needs root (chroot, mknod).
type realGuests struct {
	control  string
	folder   string
	listener net.Listener
	wait     sync.WaitGroup

	mu    sync.Mutex
	roots map[string]*guestRoot
	// Errors, and the output of the servers.
	log []string
}

// guestRoot is created once, by the first connection.
type guestRoot struct {
	once sync.Once
	path string
	err  error
}

// newRealGuests listens on a free port of 127.0.0.1. Connections wait for Serve. The guests' files are below folder.
func newRealGuests(folder string) (*realGuests, error) {
	r := &realGuests{folder: folder, roots: map[string]*guestRoot{}}
	if err := r.image(); err != nil {
		return nil, fmt.Errorf("the guests' image: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.listener = listener
	return r, nil
}

// Serve serves the guests of the control port at this URL.
func (r *realGuests) Serve(control string) {
	r.control = control
	r.wait.Go(func() {
		for {
			conn, err := r.listener.Accept()
			if err != nil {
				return
			}
			r.wait.Go(func() {
				if err := r.serve(conn.(*net.TCPConn)); err != nil {
					r.note(err.Error())
				}
			})
		}
	})
}

// Close ends the service, after all logins have ended.
func (r *realGuests) Close() {
	r.listener.Close()
	r.wait.Wait()
}

// Log returns the errors, and the output of the servers.
func (r *realGuests) Log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, "\n")
}

func (r *realGuests) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, text)
}

// image creates the folder that is copied for every guest's root.
func (r *realGuests) image() error {
	root := filepath.Join(r.folder, "image")
	for _, folder := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "home", "srv/old", "run/sshd", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return err
		}
	}
	for _, folder := range []string{"root", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o700); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	files := map[string]bool{}
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + program)
		}
		if err != nil {
			return err
		}
		files[path] = true
	}
	// Newer OpenSSH has its parts here. PAM's and sudo's modules are loaded by name.
	for _, pattern := range []string{"/usr/lib/openssh/sshd-*", "/usr/lib/*/security/pam_*.so", "/usr/libexec/sudo/*.so*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range found {
			files[path] = true
		}
	}
	library := regexp.MustCompile(`/\S+`)
	for path := range files {
		// Some of the copied files are no programs with libraries.
		said, _ := exec.Command("ldd", path).Output()
		for _, line := range strings.Split(string(said), "\n") {
			if found := library.FindString(line); found != "" && !strings.HasSuffix(found, ":") {
				files[found] = true
			}
		}
	}
	for path := range files {
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if said, err := exec.Command("cp", "-L", path, to).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
	}
	if err := os.Chmod(filepath.Join(root, "usr/bin/sudo"), 0o755|os.ModeSetuid); err != nil {
		return err
	}
	for name, text := range etc {
		to := filepath.Join(root, "etc", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.Contains(name, "shadow") {
			mode = 0o600
		}
		if err := os.WriteFile(to, []byte(text), mode); err != nil {
			return err
		}
	}
	for _, folder := range []string{"pam.d", "security"} {
		if said, err := exec.Command("cp", "-a", "/etc/"+folder, filepath.Join(root, "etc")).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
	}
	if err := os.Chown(filepath.Join(root, "srv/old"), 1500, 1500); err != nil {
		return err
	}
	for name, minor := range map[string]int{"null": 3, "zero": 5, "urandom": 9} {
		if err := syscall.Mknod(filepath.Join(root, "dev", name), syscall.S_IFCHR|0o666, 1<<8|minor); err != nil {
			return fmt.Errorf("/dev/%s: %w", name, err)
		}
		if err := os.Chmod(filepath.Join(root, "dev", name), 0o666); err != nil {
			return err
		}
	}
	key := filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")
	said, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	return nil
}

// serve passes a connection to the sshd of the guest with the source address.
func (r *realGuests) serve(conn *net.TCPConn) error {
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	var found guest
	if err := getJSON(r.control+"/guest/"+host, &found); err != nil {
		return err
	}
	if !found.Customized {
		return errors.New("connection to a guest that is not customized")
	}
	r.mu.Lock()
	root := r.roots[found.ComputerName]
	if root == nil {
		root = &guestRoot{}
		r.roots[found.ComputerName] = root
	}
	r.mu.Unlock()
	root.once.Do(func() { root.path, root.err = r.boot(found) })
	if root.err != nil {
		return root.err
	}
	socket, err := conn.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	// sshd -i serves one connection on its standard input, as from inetd.
	sshd := exec.Command("chroot", root.path, "/usr/sbin/sshd", "-i", "-e", "-o", "LogLevel=VERBOSE")
	sshd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	said := strings.Builder{}
	sshd.Stdin, sshd.Stdout, sshd.Stderr = socket, socket, &said
	conn.Close()
	err = sshd.Run()
	r.note(fmt.Sprintf("sshd of %s (%s): %v: %s", found.ComputerName, host, err, said.String()))
	return nil
}

// boot is a guest's first start: VCD sets the administrator's password, and runs the script before and after its own
// part.
func (r *realGuests) boot(guest guest) (string, error) {
	root := filepath.Join(r.folder, guest.ComputerName)
	if said, err := exec.Command("cp", "-a", filepath.Join(r.folder, "image"), root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	within := func(stdin string, command ...string) error {
		run := exec.Command("chroot", append([]string{root}, command...)...)
		run.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		run.Stdin = strings.NewReader(stdin)
		if said, err := run.CombinedOutput(); err != nil {
			return fmt.Errorf("%q in guest %s: %w: %s", command, guest.ComputerName, err, said)
		}
		return nil
	}
	if guest.Password != "" {
		if err := within("root:"+guest.Password+"\n", "chpasswd"); err != nil {
			return "", err
		}
	}
	if guest.Script == "" {
		return root, nil
	}
	if err := os.WriteFile(filepath.Join(root, "customize.sh"), []byte(guest.Script), 0o700); err != nil {
		return "", err
	}
	// Twice: VCD can customize a guest again.
	for _, phase := range []string{"precustomization", "postcustomization", "postcustomization"} {
		if err := within("", "sh", "/customize.sh", phase); err != nil {
			return "", err
		}
	}
	return root, nil
}
