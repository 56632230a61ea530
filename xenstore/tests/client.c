/* libxenstore (package libxen-dev) against the store: every call a toolstack makes, results checked.
 * Run with XENSTORED_PATH set to the store's socket. Exits 0 when all is as expected. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenstore.h>

#define CHECK(what)                                                                         \
    do {                                                                                    \
        if (!(what)) {                                                                      \
            fprintf(stderr, "line %d: %s (errno %d, %s)\n", __LINE__, #what, errno, strerror(errno)); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)
#define FAILS(what, err) CHECK(!(what) && errno == (err))

static struct xs_handle *a, *b;

static void write_text(struct xs_handle *h, xs_transaction_t t, const char *path, const char *text)
{
    CHECK(xs_write(h, t, path, text, strlen(text)));
}

static void expect_text(struct xs_handle *h, xs_transaction_t t, const char *path, const char *text)
{
    unsigned int len;
    char *value = xs_read(h, t, path, &len);
    CHECK(value && len == strlen(text) && !strcmp(value, text));
    free(value);
}

static void expect_event(struct xs_handle *h, const char *path, const char *token)
{
    struct pollfd fd = { .fd = xs_fileno(h), .events = POLLIN };
    char **event;
    while (!(event = xs_check_watch(h))) {
        CHECK(errno == EAGAIN);
        CHECK(poll(&fd, 1, 20000) == 1);
    }
    if (strcmp(event[XS_WATCH_PATH], path) || strcmp(event[XS_WATCH_TOKEN], token)) {
        fprintf(stderr, "event %s %s, expected %s %s\n", event[XS_WATCH_PATH], event[XS_WATCH_TOKEN], path, token);
        exit(1);
    }
    free(event);
}

static void nodes(void)
{
    unsigned int n;
    char **names;
    write_text(a, XBT_NULL, "/n/x", "1");
    CHECK(xs_mkdir(a, XBT_NULL, "/n/y"));
    CHECK(xs_mkdir(a, XBT_NULL, "/n/x"));
    expect_text(b, XBT_NULL, "/n/x", "1");
    names = xs_directory(b, XBT_NULL, "/n", &n);
    CHECK(names && n == 2 && !strcmp(names[0], "x") && !strcmp(names[1], "y"));
    free(names);
    CHECK(xs_rm(a, XBT_NULL, "/n/x"));
    CHECK(xs_rm(a, XBT_NULL, "/n/x"));
    FAILS(xs_read(a, XBT_NULL, "/n/x", &n), ENOENT);
    FAILS(xs_rm(a, XBT_NULL, "/none/x"), ENOENT);
    FAILS(xs_rm(a, XBT_NULL, "/"), EINVAL);
    FAILS(xs_read(a, XBT_NULL, "/bad//path", &n), EINVAL);
    FAILS(xs_read(a, XBT_NULL, "/bad path", &n), EINVAL);
    FAILS(xs_read(a, 12345, "/n", &n), ENOENT);
}

static void transactions(void)
{
    xs_transaction_t t, u;
    write_text(a, XBT_NULL, "/t/x", "1");
    /* Seen inside, not outside, until the end. */
    CHECK((t = xs_transaction_start(a)));
    write_text(a, t, "/t/x", "2");
    expect_text(a, t, "/t/x", "2");
    expect_text(b, XBT_NULL, "/t/x", "1");
    CHECK(xs_transaction_end(a, t, false));
    expect_text(b, XBT_NULL, "/t/x", "2");
    /* Dropped. */
    CHECK((t = xs_transaction_start(a)));
    CHECK(xs_rm(a, t, "/t"));
    CHECK(xs_transaction_end(a, t, true));
    expect_text(b, XBT_NULL, "/t/x", "2");
    /* What was read has changed. */
    CHECK((t = xs_transaction_start(a)));
    expect_text(a, t, "/t/x", "2");
    write_text(b, XBT_NULL, "/t/x", "3");
    expect_text(a, t, "/t/x", "2");
    write_text(a, t, "/t/y", "from 2");
    FAILS(xs_transaction_end(a, t, false), EAGAIN);
    /* Two that read what the other writes: the second fails. */
    CHECK((t = xs_transaction_start(a)) && (u = xs_transaction_start(b)));
    expect_text(a, t, "/t/x", "3");
    expect_text(b, u, "/t/x", "3");
    write_text(a, t, "/t/x", "4");
    write_text(b, u, "/t/x", "5");
    CHECK(xs_transaction_end(a, t, false));
    FAILS(xs_transaction_end(b, u, false), EAGAIN);
    expect_text(b, XBT_NULL, "/t/x", "4");
    FAILS(xs_transaction_end(a, t, false), ENOENT);
}

static void watches(void)
{
    xs_transaction_t t;
    CHECK(xs_watch(b, "/w", "token"));
    expect_event(b, "/w", "token");
    FAILS(xs_watch(b, "/w", "token"), EEXIST);
    write_text(a, XBT_NULL, "/w/x", "1");
    expect_event(b, "/w/x", "token");
    CHECK((t = xs_transaction_start(a)));
    write_text(a, t, "/w/y", "1");
    CHECK(!xs_check_watch(b) && errno == EAGAIN);
    CHECK(xs_transaction_end(a, t, false));
    expect_event(b, "/w/y", "token");
    CHECK(xs_watch(b, "/w/x", "deep"));
    expect_event(b, "/w/x", "deep");
    CHECK(xs_rm(a, XBT_NULL, "/w"));
    expect_event(b, "/w", "token");
    expect_event(b, "/w/x", "deep");
    CHECK(xs_unwatch(b, "/w", "token"));
    CHECK(xs_unwatch(b, "/w/x", "deep"));
    FAILS(xs_unwatch(b, "/w", "token"), ENOENT);
}

static void permissions(void)
{
    struct xs_permissions perms[3] = { { 7, XS_PERM_READ }, { 8, XS_PERM_WRITE }, { 9, XS_PERM_READ | XS_PERM_WRITE } };
    struct xs_permissions *got;
    unsigned int n;
    write_text(a, XBT_NULL, "/p", "");
    CHECK(xs_set_permissions(a, XBT_NULL, "/p", perms, 3));
    got = xs_get_permissions(b, XBT_NULL, "/p", &n);
    CHECK(got && n == 3 && !memcmp(got, perms, sizeof(perms)));
    free(got);
    /* A child starts with its parent's. */
    CHECK(xs_mkdir(a, XBT_NULL, "/p/child"));
    got = xs_get_permissions(b, XBT_NULL, "/p/child", &n);
    CHECK(got && n == 3 && got[0].id == 7);
    free(got);
}

static void big_directory(void)
{
    char path[64], **names;
    unsigned int n;
    for (n = 0; n < 3000; n++) {
        snprintf(path, sizeof(path), "/big/child-%04u", n);
        CHECK(xs_mkdir(a, XBT_NULL, path));
    }
    names = xs_directory(b, XBT_NULL, "/big", &n);
    CHECK(names && n == 3000 && !strcmp(names[0], "child-0000") && !strcmp(names[2999], "child-2999"));
    free(names);
}

static void domains(void)
{
    char *path, *answer;
    CHECK(xs_watch(b, "@introduceDomain", "in") && xs_watch(b, "@releaseDomain", "out"));
    expect_event(b, "@introduceDomain", "in");
    expect_event(b, "@releaseDomain", "out");
    CHECK(!xs_is_domain_introduced(a, 3));
    CHECK(xs_introduce_domain(a, 3, 0x1234, 5));
    expect_event(b, "@introduceDomain", "in");
    CHECK(xs_is_domain_introduced(a, 3));
    CHECK((path = xs_get_domain_path(a, 3)) && !strcmp(path, "/local/domain/3"));
    free(path);
    CHECK(xs_resume_domain(a, 3));
    CHECK(xs_set_target(a, 3, 3));
    CHECK(xs_release_domain(a, 3));
    expect_event(b, "@releaseDomain", "out");
    CHECK(!xs_is_domain_introduced(a, 3));
    FAILS(xs_release_domain(a, 3), ENOENT);
    FAILS(xs_introduce_domain(a, 0, 1, 1), EINVAL);
    CHECK((answer = xs_control_command(a, "help", NULL, 0)) && strstr(answer, "quota"));
    free(answer);
    FAILS(xs_control_command(a, "no-such-command", NULL, 0), EINVAL);
}

int main(void)
{
    CHECK((a = xs_open(0)) && (b = xs_open(XS_UNWATCH_FILTER)));
    nodes();
    transactions();
    watches();
    permissions();
    big_directory();
    domains();
    xs_close(a);
    xs_close(b);
    return 0;
}
