/* Many small files in one call: what costs most of a file is asking for it.

   Plain C for Linux, called through ctypes, which lets go of the interpreter's lock
   meanwhile. Whatever is not as simple as expected is left to the caller, who looks at it
   by itself: batch.py has the contract, and does the same without a compiler. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define NAMES 1024 /* bytes of attributes' names that are looked through */
#define PIECE 65536 /* bytes that are compared at a time */

struct mark {
    int64_t ctime, inode, mtime, size, names;
};

struct plan {
    int64_t offset, length, mode, uid, gid, mtime;
};

struct seen {
    int64_t ctime;
    uint64_t inode;
};

struct status {
    int64_t mode;
    uint64_t inode, device;
    int64_t names, uid, gid, size, mtime, ctime, blocks;
    uint64_t special;
};

static int64_t nanoseconds(struct timespec time) {
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Look at names, links not followed. One that does not tell gets a mode of zero. */
void stat_files(int parent, long count, const char *names, struct status *found) {
    for (long i = 0; i < count; i++, names += strlen(names) + 1) {
        struct stat now;
        if (fstatat(parent, names, &now, AT_SYMLINK_NOFOLLOW)) {
            found[i].mode = 0;
            continue;
        }
        found[i] = (struct status){
            now.st_mode, now.st_ino,  now.st_dev,
            now.st_nlink, now.st_uid, now.st_gid,
            now.st_size, nanoseconds(now.st_mtim), nanoseconds(now.st_ctim),
            now.st_blocks, now.st_rdev,
        };
    }
}

/* As kept_xattr in entry.py. */
static int is_kept(const char *name) {
    return !strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
           !strcmp(name, "system.posix_acl_access") ||
           !strcmp(name, "system.posix_acl_default");
}

static int has_attributes(int file) {
    char names[NAMES];
    ssize_t length = flistxattr(file, names, sizeof names);
    if (length < 0)
        return errno != ENOTSUP && errno != EPERM && errno != ENODATA;
    for (char *name = names; name < names + length; name += strlen(name) + 1)
        if (is_kept(name))
            return 1;
    return 0;
}

static int is_as_marked(const struct stat *now, const struct mark *mark, dev_t device) {
    return S_ISREG(now->st_mode) && now->st_dev == device &&
           (int64_t)now->st_ino == mark->inode && now->st_size == mark->size &&
           (int64_t)now->st_nlink == mark->names &&
           nanoseconds(now->st_mtim) == mark->mtime &&
           nanoseconds(now->st_ctim) == mark->ctime;
}

static int read_fully(int file, char *out, int64_t size) {
    while (size > 0) {
        ssize_t count = read(file, out, size);
        if (count <= 0)
            return 0;
        out += count;
        size -= count;
    }
    return 1;
}

/* Read files one behind the other into `out`, which has room for all of them. `places`
   gets where each begins, or -1. `names` are closed by a zero each. */
void read_files(int parent, long count, const char *names, const struct mark *marks,
                uint64_t device, char *out, int64_t *places) {
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int quiet = O_NOATIME; /* not for files of others */
    struct timespec coarse;
    int64_t place = 0;
    clock_gettime(CLOCK_REALTIME_COARSE, &coarse);
    for (long i = 0; i < count; i++, names += strlen(names) + 1) {
        places[i] = -1;
        if (marks[i].ctime == nanoseconds(coarse))
            continue; /* a write in the same tick would not show */
        int file = openat(parent, names, flags | quiet);
        if (file < 0 && errno == EPERM && quiet) {
            quiet = 0;
            file = openat(parent, names, flags);
        }
        if (file < 0)
            continue;
        struct stat now;
        if (read_fully(file, out + place, marks[i].size) && !has_attributes(file) &&
            !fstat(file, &now) && is_as_marked(&now, &marks[i], device)) {
            places[i] = place;
            place += marks[i].size;
        }
        close(file);
    }
}

static int write_fully(int file, const char *data, int64_t size) {
    while (size > 0) {
        ssize_t count = write(file, data, size);
        if (count < 0)
            return 0;
        data += count;
        size -= count;
    }
    return 1;
}

/* Say whether the disk has what was written, and nothing beside it. */
static int is_as_written(int file, const char *data, int64_t size) {
    char back[PIECE];
    for (int64_t at = 0; at < size;) {
        ssize_t count = pread(file, back, size - at < PIECE ? size - at : PIECE, at);
        if (count <= 0 || memcmp(back, data + at, count))
            return 0;
        at += count;
    }
    return !has_attributes(file);
}

/* The time comes last: what has the right one is whole. `right` gets whether what is
   read back is what was written; reading would change the access time afterwards. */
static int fill(int file, const char *data, const struct plan *plan, int *right) {
    struct stat now;
    struct timespec time = {plan->mtime / SECOND, plan->mtime % SECOND};
    if (time.tv_nsec < 0) {
        time.tv_nsec += SECOND;
        time.tv_sec--;
    }
    struct timespec times[2] = {time, time};
    data += plan->offset;
    if (!write_fully(file, data, plan->length) || fstat(file, &now))
        return 0;
    *right = is_as_written(file, data, plan->length);
    if (((int64_t)now.st_uid != plan->uid || (int64_t)now.st_gid != plan->gid) &&
        fchown(file, plan->uid, plan->gid))
        return 0;
    if ((now.st_mode & 07777) != plan->mode && fchmod(file, plan->mode))
        return 0;
    return !futimens(file, times);
}

/* As a file looks when it is what was planned; zeros for one that is not. */
static struct seen look_back(int file, const struct plan *plan) {
    struct stat now;
    if (fstat(file, &now) || now.st_size != plan->length || now.st_nlink != 1 ||
        (now.st_mode & 07777) != plan->mode || (int64_t)now.st_uid != plan->uid ||
        (int64_t)now.st_gid != plan->gid || nanoseconds(now.st_mtim) != plan->mtime)
        return (struct seen){0, 0};
    return (struct seen){nanoseconds(now.st_ctim), now.st_ino};
}

/* Make files from pieces of `segment`. Of each two names are given: the one to write to,
   empty in a directory that nobody sees yet, and the one that it gets when it is whole.
   `done` gets 1, or 0 for a file of which nothing is left. `seen` gets how a file looks
   that was read back and is all that it should be. */
void write_files(int parent, long count, const char *names, const struct plan *plans,
                 const char *segment, char *done, struct seen *seen) {
    for (long i = 0; i < count; i++) {
        const char *temporary = names, *name = names + strlen(names) + 1;
        names = name + strlen(name) + 1;
        int hidden = !*temporary;
        const char *first = hidden ? name : temporary;
        done[i] = 0;
        seen[i] = (struct seen){0, 0};
        int file = openat(parent, first, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                          hidden ? plans[i].mode & 0777 : 0600);
        if (file < 0)
            continue;
        int right = 0, whole = fill(file, segment, &plans[i], &right);
        if (whole && (hidden || !renameat(parent, first, parent, name))) {
            done[i] = 1;
            if (right) /* only now: a new name is a change */
                seen[i] = look_back(file, &plans[i]);
        } else {
            unlinkat(parent, first, 0);
        }
        close(file);
    }
}
